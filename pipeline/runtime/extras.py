"""Optional packages: one that is missing is one sentence with the command that installs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from pipeline.errors import ConfigError


@contextmanager
def optional_packages(extra: str, *, for_what: str) -> Iterator[None]:
    """Import packages of an extra of this distribution within the context.

    Raises `ConfigError` for a missing one, with the command that installs the extra's packages. The packages are named,
    since `pip install 'fantrans[...]'` only works where an index has fantrans.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        packages = " ".join(f"'{each}'" for each in requirements(extra))
        raise ConfigError(
            f"{for_what} needs the package {error.name}, which is not installed; run `pip install {packages}`"
        ) from None


def requirements(extra: str) -> list[str]:
    """Return the packages of an extra with their versions, such as `onnx>=1.18`."""
    marked = (re.split(r"\s*;\s*", line) for line in metadata.requires("fantrans") or ())
    return [
        package for package, *marker in marked if any(re.search(rf"""extra == ['"]{extra}['"]""", m) for m in marker)
    ]

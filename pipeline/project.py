"""Where files are found: the catalog, the project folder around it, experiments, and what the packages ship.

The catalog is the file that FANTRANS_CATALOG names, else `data_catalog.yaml` in the working folder or its nearest
parent that has one, else the shipped one. Its folder is the project folder. With the shipped catalog of an installed
package, the project folder is the working folder, so that outputs never land among the packages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.runtime.text import unknown_name

CATALOG_NAME = "data_catalog.yaml"
PACKAGES_FOLDER = Path(__file__).parents[1]
"""Holds models/, pipeline/ and flows/: a checkout, or site-packages."""

_INSTALLED = Path(__file__).with_name("shipped")
SHIPPED_FOLDER = _INSTALLED if _INSTALLED.is_dir() else PACKAGES_FOLDER
"""Holds the shipped catalog, configs/ and prefect.yaml: a wheel has them in a package, a checkout at its top."""


def shipped_file(name: str) -> Path:
    """Return the path of a shipped file or folder, such as `configs`."""
    return SHIPPED_FOLDER / name


def expand_home(path: Path) -> Path:
    """Return the path with a leading ~ or ~USER replaced by that home folder; unchanged if there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def find_catalog(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the catalog in use; one that FANTRANS_CATALOG names may not exist."""
    named = environment.get("FANTRANS_CATALOG")
    if named:
        return expand_home(Path(named))
    here = Path.cwd()
    found = (folder / CATALOG_NAME for folder in (here, *here.parents))
    return next((path for path in found if path.is_file()), shipped_file(CATALOG_NAME))


def anchor_folder(catalog: Path) -> Path:
    """Return the folder that the relative paths of a catalog start from: its own, never one among the packages."""
    folder = catalog.resolve().parent
    return Path.cwd() if folder == _INSTALLED.resolve() else folder


def project_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the catalog in use; the working folder for the shipped catalog of an installed package."""
    return anchor_folder(find_catalog(environment))


def project_file(name: str) -> Path:
    """Return the project's own file or folder of that name, else the shipped one."""
    own = project_folder() / name
    return own if own.exists() else shipped_file(name)


def experiment_folders() -> tuple[Path, ...]:
    """Return the folders of experiments, in the order in which a name is looked up: the project's, the shipped one."""
    return tuple(dict.fromkeys((project_folder() / "configs", shipped_file("configs"))))


def find_experiment(name: str, *, beside: Path | None = None) -> Path:
    """Return the file of an experiment or set: in the folder `beside`, else the project's, else the shipped one.

    A name that ends in .yaml or .yml is a path. `beside` is the folder of the file that derives from it. Raises
    `ConfigError` for an unknown name, with the known ones of all folders.
    """
    if is_experiment_path(name):
        folders: tuple[Path, ...] = (Path(name).parent,)
        found = Path(name)
    else:
        folders = tuple(dict.fromkeys((*filter(None, [beside]), *experiment_folders())))
        found = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), folders[0] / name)
    if not found.is_file():
        other = found.stem if is_experiment_path(name) else f"{name}.yaml"
        if _exists(other):
            raise ConfigError(f"experiment {name!r} does not exist; did you mean {other!r}?")
        known = sorted({path.stem for folder in experiment_folders() for path in folder.glob("*.yaml")})
        raise ConfigError(unknown_name("experiment", found.stem, known, where=f" in {' or '.join(map(str, folders))}"))
    return found


def _exists(name: str) -> bool:
    """Whether an experiment exists, by its path or by its name."""
    if is_experiment_path(name):
        return Path(name).is_file()
    return any((folder / f"{name}.yaml").is_file() for folder in experiment_folders())


def is_experiment_path(name: str) -> bool:
    """Return whether an experiment is named by its path."""
    return name.endswith((".yaml", ".yml"))

"""Find a head of one's own, "my_heads:MyHead", and the source files that decide what it computes.

The module lies in the working folder or in an installed package; nothing else is imported.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pipeline.runtime.text import nearest_name

_SPEC = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
_OURS = ("fantrans", "flows", "models", "pipeline")
"""Packages whose source does not count: versions of them are recorded in other ways."""


class HeadClass(NamedTuple):
    """A class of heads, the source files that it is built from, and the hash of their contents."""

    cls: type[Any]
    files: tuple[Path, ...]
    source_sha256: str


def load_head_class(spec: str) -> HeadClass:
    """Import the class that `spec` names as MODULE:CLASS; import it again if its source changed since.

    Raises `ValueError` if the module is neither in the working folder nor in an installed package, cannot be imported,
    or has no such class.
    """
    match = _SPEC.fullmatch(spec)
    if match is None or ".py:" in spec:
        raise ValueError('expected MODULE:CLASS without .py, such as "my_heads:MyHead"')
    module_name, class_name = match.groups()
    folder = Path.cwd()
    local = _local_files(module_name, folder)
    digest = _digest(local.values(), folder)
    if _digest_at_import.get(module_name, digest) != digest:  # in a notebook, say
        for name in local:
            sys.modules.pop(name, None)
    module = _import(module_name, folder, tuple(local.values()))
    _digest_at_import[module_name] = digest
    cls = getattr(module, class_name, None)
    if cls is not None and not inspect.isclass(cls):
        raise ValueError(f"{class_name} of {module.__file__} is a {type(cls).__name__}, expected a class")
    if cls is None:
        here = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module_name]
        known = [each.__name__ for each in here]
        raise ValueError(f"{module.__file__} has no class {class_name!r}{_nearest(class_name, known)}")
    if local:
        return HeadClass(cls, tuple(local.values()), digest)
    files = (Path(inspect.getfile(cls)),)
    versions = [f"{name}=={metadata.version(name)}" for name in _distributions()[cls.__module__.partition(".")[0]]]
    return HeadClass(cls, files, _digest(files, folder, *sorted(versions)))


_digest_at_import: dict[str, str] = {}
"""Hash of the source of each local module when it was imported."""


def _digest(files: Iterable[Path], folder: Path, *more: str) -> str:
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(folder) if path.is_relative_to(folder) else path.name
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    for text in more:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()


def check_arguments(cls: type[Any], arguments: Iterable[str]) -> None:
    """Raise `ValueError` if a class is not built as `cls(inputs, **arguments)`, by the names of its parameters."""
    from torch import nn  # noqa: PLC0415 - the settings of the paper's heads are read without torch

    if not issubclass(cls, nn.Module):
        raise ValueError(f"{cls.__name__} is not a torch.nn.Module")
    signature = inspect.signature(cls)
    given: Mapping[str, None] = dict.fromkeys(arguments)
    try:
        signature.bind(None, **given)
    except TypeError as error:
        known = list(signature.parameters)[1:]
        wrong = next((name for name in given if name not in known), "")
        raise ValueError(f"{cls.__name__}(inputs, ...) cannot be built: {error}{_nearest(wrong, known)}") from None


def _nearest(name: str, known: list[str]) -> str:
    near = nearest_name(name, known)
    return f"; did you mean {near!r}?" if near else f"; known ones: {', '.join(known) or 'none'}"


def _import(name: str, folder: Path, files: Collection[Path]) -> ModuleType:
    """Import a module of the working folder or of an installed package, and of nowhere else on the path."""
    top, is_local = name.partition(".")[0], bool(files)
    if not is_local and top not in _distributions():
        raise ValueError(
            f"there is no module {top!r} in {folder} and no installed package of this name; run the command in the "
            f"folder of {top}.py"
        )
    loaded = sys.modules.get(top)
    if is_local and loaded is not None and not _is_below(loaded, folder):
        raise ValueError(f"the module {top!r} of {folder} has the name of another one that is loaded; rename your file")
    if is_local and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"the module {name!r} cannot be imported: {describe_error(error, files)}") from error


def describe_error(error: Exception, files: Collection[Path]) -> str:
    """Return an error of a user's code in one line, with the last line of `files` that it passed through."""
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in files]
    return f"{what} ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})" if frames else what


def _is_below(module: ModuleType, folder: Path) -> bool:
    places = [module.__file__] if module.__file__ else list(module.__path__)
    return any(Path(place).resolve().is_relative_to(folder.resolve()) for place in places if place)


def _local_files(name: str, folder: Path) -> dict[str, Path]:
    """Return the source files by module of a module in `folder` and of the modules there that it imports.

    Empty if the module is not there. Raises `ValueError` for a file that is not Python.
    """
    found: dict[str, Path] = {}
    names = [name]
    while names:
        here = names.pop()
        path = _source_file(here, folder)
        if path is None or here in found or here.partition(".")[0] in _OURS:
            continue
        found[here] = path
        try:
            tree = ast.parse(path.read_bytes(), filename=str(path))
        except SyntaxError as error:
            raise ValueError(f"the module {here!r} cannot be imported: {error}") from None
        package = here if path.name == _INIT else here.rpartition(".")[0]
        imported = [each for node in ast.walk(tree) for each in _imported_names(node, package)]
        for each in (here, *imported):
            parts = each.split(".")
            names += [".".join(parts[:n]) for n in range(1, len(parts) + 1)]  # a package is imported before its modules
    return dict(sorted(found.items())) if name in found else {}


_INIT = "__init__.py"


def _source_file(name: str, folder: Path) -> Path | None:
    stem = folder.joinpath(*name.split("."))
    return next((path for path in (stem / _INIT, stem.with_name(f"{stem.name}.py")) if path.is_file()), None)


def _imported_names(node: ast.AST, package: str) -> list[str]:
    """Return the modules that a statement may import; a name that is imported from a module may be one, too."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    module = ".".join([*parents, *filter(None, [node.module])])
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Return the installed distributions by the packages that they provide."""
    return metadata.packages_distributions()

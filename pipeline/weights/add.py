"""Add a file of weights to the project's weights folder, converted to safetensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError, WeightsError
from pipeline.runtime.atomic import file_sha256, write_json, write_safetensors
from pipeline.weights.files import read_weights
from pipeline.weights.folder import entry_path, is_added, read_entries
from pipeline.weights.networks import Architecture, canonical_state, load_state, make_network
from pipeline.weights.published import PUBLISHED, Pooling, PublishedWeights, find_misfit, find_published

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SUFFIXES = (".safetensors", ".pth.tar", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".zip")


def add_weights(
    path: Path,
    folder: Path,
    *,
    name: str | None = None,
    pooling: Pooling | None = None,
    taken: Collection[str] = (),
) -> tuple[str, bool]:
    """Convert a file of weights (see `files.read_weights`) and add it to a weights folder.

    name: default: that of the published weights with this file, else the file's own. pooling: of a FAN; needed where
    neither the published weights nor the file name it. taken: names that the catalog has from elsewhere.
    Returns the name, and whether anything was written: the same weights may be added again. The file written depends
    on the values of the weights alone. Raises `UsageError` for a name that other weights have and for a pooling that
    is missing or wrong; `WeightsError` for a file that is damaged, or is not the published one of that name.
    """
    found = read_weights(path)
    sha256 = file_sha256(path)
    misfit = find_misfit(path.name, sha256)
    if misfit is not None:
        raise WeightsError(f"{path} cannot be used: {misfit}")
    name = name or find_published(path.name, sha256) or _name_from(path)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name of weights: letters, digits and ._- only; choose another with --name")
    if name in taken:
        raise UsageError(f"the catalog already has weights {name!r}; choose another name with --name")
    published = PUBLISHED.get(name)
    if published is not None:
        _check_published(path, sha256, name, published, found.architecture)
    if found.architecture.family == "fan":
        known_pooling = (published.pooling if published else None) or found.pooling
        pooling = _choose_pooling(path, given=pooling, known=known_pooling)
    elif pooling is not None:
        raise UsageError(f"{path} is a {found.architecture.family}, which has no --pooling; leave it out")
    network = make_network(found.architecture, pooling)
    load_state(network, found.state, what=f"weights {path}", expected=found.architecture, fix="name another file")

    before = read_entries(folder).get(name)
    source = {"file": path.name, "sha256": sha256, "url": published.url if published else None}
    if before is not None and not (_has_source(before, sha256) and before.get("pooling") == pooling):
        raise UsageError(
            f"{folder} already has other weights {name!r}; choose another name with --name, or remove them with "
            f"`fantrans weights rm {name}`"
        )
    if is_added(folder, name):
        return name, False
    target = folder / f"{name}.safetensors"
    write_safetensors(target, canonical_state(network))
    shape = {**found.architecture._asdict(), "pooling": pooling}
    entry = {
        "path": target.name,
        "sha256": file_sha256(target),
        **{key: value for key, value in shape.items() if value is not None},
        "source": source,
    }
    if before is not None and "codec" in before:  # the same weights, whose file was damaged
        entry["codec"] = before["codec"]
    write_json(entry_path(folder, name), entry)
    return name, True


def _has_source(entry: Mapping[str, Any], sha256: str) -> bool:
    """Whether an entry was written for the file with this sha256; one that was written by hand has no source."""
    return bool((entry.get("source") or {}).get("sha256") == sha256)


def _check_published(path: Path, sha256: str, name: str, published: PublishedWeights, found: Architecture) -> None:
    """Raise `WeightsError` unless the file can be the published one."""
    if published.sha256 and not sha256.startswith(published.sha256):
        raise WeightsError(
            f"{path} has sha256 {sha256[:12]}..., the published {name} begins with {published.sha256[0]}; download it "
            "again, or add other weights under another --name"
        )
    if tuple(found) != (published.family, published.width, published.num_stacks):
        raise WeightsError(f"{path} is {found}, not the published {name}; give it another --name")


def _choose_pooling(path: Path, *, given: Pooling | None, known: Pooling | None) -> Pooling:
    """Return the pooling of a FAN: the given or the known one, which must not differ."""
    if given is not None and known is not None and given != known:
        raise UsageError(f"{path} is a FAN with --pooling {known}, not {given}; leave --pooling out")
    chosen = given or known
    if chosen is None:
        raise UsageError(
            f"{path} is a FAN, and the file does not contain its pooling; state it with --pooling max (ibug's 2dfan2, "
            "2dfan2_alt) or --pooling avg (face-alignment's 2DFAN-4, ibug's 2dfan4)"
        )
    return chosen


def _name_from(path: Path) -> str:
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name

"""Read a file of weights, as its authors published it, without running code that it contains."""

from __future__ import annotations

import pickle
import re
import shutil
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.runtime.text import join_first
from pipeline.weights.kinds import FileKind, file_kind
from pipeline.weights.networks import Architecture, recognise, without_prefix
from pipeline.weights.published import Pooling
from pipeline.weights.torchscript import read_torchscript

_MAX_DEPTH = 4
"""Dictionaries within dictionaries that are searched for a state dict."""


class NamedState(NamedTuple):
    """A state dict of a known network; pooling: what a TorchScript archive's code names, None if unknown."""

    state: dict[str, Tensor]
    architecture: Architecture
    pooling: Pooling | None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; `WeightsError` for a file of another kind or a cut one."""
    kind = file_kind(path)
    if kind is not FileKind.SAFETENSORS:
        raise WeightsError(
            f"{path} is {kind.value}, and the catalog takes safetensors; run `fantrans weights add {path}`, which "
            "converts it"
        )
    return _load_safetensors(path)


def read_weights(path: Path) -> NamedState:
    """Return the state dict of the one known network in a file of any `FileKind`.

    Wrapping dictionaries and prefixes such as `module.` are removed. Raises `WeightsError` as `file_kind` does, and for
    a pickle with other content than data, a damaged file, and a file without a known network or with several.
    """
    kind = file_kind(path)
    if kind is FileKind.ZIPPED:
        return _read_zipped(path)
    pooling: Pooling | None = None
    content: Any
    if kind is FileKind.SAFETENSORS:
        content = _load_safetensors(path)
    else:
        try:
            if kind is FileKind.TORCHSCRIPT:
                content, pooling = read_torchscript(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise WeightsError(_describe_pickle(path, str(error))) from None
        except Exception as error:  # whatever damaged bytes cause: EOFError, KeyError, RuntimeError, BadZipFile, ...
            raise _damaged(path, error) from None
    found = {where: (state, known) for where, state, known in _networks(content, "", 0)}
    if len(found) > 1:
        raise WeightsError(
            f"{path} holds the weights of {len(found)} networks ({', '.join(found)}); save one of them as a file"
        )
    if not found:
        raise WeightsError(
            f"{path} holds no weights of a FAN, of a RetinaFace with a MobileNet or ResNet-50, or of timm's resnet18; "
            f"it has {_describe(content)}; name another file"
        )
    ((state, architecture),) = found.values()
    return NamedState(state, architecture, pooling)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = textwrap.shorten(f"{error}", 120, placeholder=" ...") or type(error).__name__
    return WeightsError(f"{path} is cut or damaged ({reason}); download the file of weights again")


def _describe_pickle(path: Path, error: str) -> str:
    forbidden = re.search(r"GLOBAL ([\w.]+)", error) or re.search(r"[Uu]nsupported class (\S+)", error)
    if forbidden is None:
        return str(_damaged(path, ValueError(error)))
    return (
        f"{path} contains {forbidden[1]}, and loading that may run code of the file; where the file was made, save the "
        "state dict alone: torch.save(network.state_dict(), 'weights.pth')"
    )


def _read_zipped(path: Path) -> NamedState:
    """Read the only file of a zip, as PyTorch's model zoo packed weights before 2020."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        (info,) = (info for info in archive.infolist() if not info.is_dir())
        inner = Path(folder) / Path(info.filename).name
        try:
            with archive.open(info) as source, inner.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise _damaged(path, error) from None
        try:
            if file_kind(inner) is FileKind.ZIPPED:
                raise WeightsError(f"{path} is a zip of a zip; unpack it and name the file of weights")
            return read_weights(inner)
        except WeightsError as error:
            raise WeightsError(str(error).replace(str(inner), f"{path}, unpacked,")) from None


def _networks(content: Any, where: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor], Architecture]]:
    """Yield the known networks in nested dictionaries: where, state dict without prefix, architecture."""
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return
    state = without_prefix({name: v for name, v in content.items() if isinstance(name, str) and isinstance(v, Tensor)})
    architecture = recognise(state)
    if architecture is not None:
        yield where or "the file itself", state, architecture
        return
    for name, value in content.items():
        yield from _networks(value, f"{where}.{name}" if where else str(name), depth + 1)


def _describe(content: Any) -> str:
    if isinstance(content, Tensor):
        return "one tensor without a name"
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"{len(content):,} entries: {join_first(map(str, content), 3)}" if content else "nothing"

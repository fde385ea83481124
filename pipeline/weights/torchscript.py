"""Read the tensors of a TorchScript archive without running the code in it.

`torch.jit.load` compiles the archive's code and may run its `__setstate__`. Here only `data.pkl` is read, by an
unpickler that knows tensors and the plain records which modules are stored as, and refuses everything else.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Record:
    """A stored module: its attributes, tensors and submodules among them."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _plain(value: Any, *_: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _plain,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch.jit._pickle", "build_intlist"): _plain,
    ("torch.jit._pickle", "build_doublelist"): _plain,
    ("torch.jit._pickle", "build_boollist"): _plain,
    ("torch.jit._pickle", "build_tensorlist"): _plain,
    ("torch.jit._pickle", "restore_type_tag"): _plain,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".", maxsplit=1)[0] == "__torch__":
            return _Record
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]


def read_torchscript(path: Path) -> tuple[dict[str, Tensor], Literal["avg", "max"] | None]:
    """Return the state dict of a TorchScript archive, and the pooling that its code names (None: neither, or both).

    The code is searched as text and never run. Raises `pickle.UnpicklingError` for content other than tensors and
    modules, `zipfile.BadZipFile`, `KeyError`, `RuntimeError` or `ValueError` for a damaged archive.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next(name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")).split("/")[0]
        record = _Unpickler(archive, root).load()
        code = b"".join(archive.read(name) for name in names if name.startswith(f"{root}/code/") and name[-3:] == ".py")
    found: set[Literal["avg", "max"]] = set()
    if re.search(rb"\bavg_pool2d\b", code):
        found.add("avg")
    if re.search(rb"\bmax_pool2d\b", code):
        found.add("max")
    state: dict[str, Tensor] = {}
    _collect(record, "", state)
    return state, found.pop() if len(found) == 1 else None


def _collect(record: Any, prefix: str, state: dict[str, Tensor]) -> None:
    for name, value in vars(record).items() if isinstance(record, _Record) else ():
        if isinstance(value, Tensor):
            state[prefix + name] = value
        else:
            _collect(value, f"{prefix}{name}.", state)

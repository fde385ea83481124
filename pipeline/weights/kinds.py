"""What a file of weights really is, by its first bytes: a download may be a page, a pointer or half a file."""

from __future__ import annotations

import re
import struct
import zipfile
from enum import Enum
from pathlib import Path

from pipeline.errors import WeightsError, WeightsNotFoundError

_HEAD_BYTES = 1024
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ZIP_MAGIC = b"PK\x03\x04"
_LARGEST_HEADER_BYTES = 100_000_000
"""Of safetensors, by its specification."""
_AGAIN = "download the file of weights again"


class FileKind(Enum):
    """Formats of weights; each value completes the sentence "the file is ..."."""

    SAFETENSORS = "safetensors"
    PICKLE = "a pickled PyTorch file"
    TORCHSCRIPT = "a TorchScript archive"
    ZIPPED = "a zip of one file"


def file_kind(path: Path) -> FileKind:
    """Return the format of a file of weights; reads its first bytes, and of a zip the list of its files.

    Raises `WeightsNotFoundError` if it does not exist; `WeightsError`, a sentence of its own for each, for a folder, an
    empty or cut file, a web page, a Git LFS pointer, another zip, and for anything else.
    """
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; name the file of weights in it")
    if not path.is_file():
        raise WeightsNotFoundError(f"{path} does not exist; name an existing file of weights")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    size_bytes = path.stat().st_size
    if not head:
        raise WeightsError(f"{path} is empty; {_AGAIN}")
    if head.startswith(_LFS_POINTER):
        raise WeightsError(_describe_pointer(path, head))
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", head, re.IGNORECASE):
        raise WeightsError(f"{path} is a web page, not weights; {_AGAIN}, from the address of the file itself")
    if head.startswith(_ZIP_MAGIC):
        return _zip_kind(path, size_bytes)
    if head[0] == 0x80:  # the PROTO opcode of a pickle
        return FileKind.PICKLE
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_bytes <= _LARGEST_HEADER_BYTES:
        if 8 + header_bytes > size_bytes:
            raise WeightsError(f"{path} is cut: {size_bytes:,} bytes, and its header alone has more; {_AGAIN}")
        return FileKind.SAFETENSORS
    raise WeightsError(
        f"{path} is not a file of weights: expected safetensors, a PyTorch .pth or .pt, or a TorchScript .zip, "
        f"found other bytes ({head[:8].hex(' ')}); {_AGAIN}"
    )


def _describe_pointer(path: Path, head: bytes) -> str:
    size = re.search(rb"^size (\d+)", head, re.MULTILINE)
    size_text = "" if size is None else f" of {int(size[1]) / 1e6:,.1f} MB"
    return (
        f"{path} is a Git LFS pointer to a file{size_text}, not the file; run `git lfs pull` where it was cloned, "
        "or download the file itself"
    )


def _zip_kind(path: Path, size_bytes: int) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError):
        raise WeightsError(
            f"{path} is cut or damaged: {size_bytes:,} bytes of a zip file without its end; {_AGAIN}"
        ) from None
    except (ValueError, NotImplementedError, struct.error) as error:  # what zipfile lets through
        raise WeightsError(f"{path} is damaged: the zip's list of files cannot be read ({error}); {_AGAIN}") from None
    depth_2 = {name.split("/", 1)[1] for name in names if "/" in name}
    if "data.pkl" in depth_2:
        return FileKind.TORCHSCRIPT if "constants.pkl" in depth_2 else FileKind.PICKLE
    if len(names) == 1:
        return FileKind.ZIPPED
    raise WeightsError(
        f"{path} is a zip of other files ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}), not of weights; "
        "unpack it and name the file of weights"
    )

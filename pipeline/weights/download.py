"""Download one file over HTTP: resumed after an interruption, checked, and put in place when it is complete."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from pipeline.errors import WeightsError, WriteError
from pipeline.runtime.atomic import discard, file_sha256, fsync_file, put_in_place, write_bytes_atomically
from pipeline.runtime.progress import track

_NUM_TRIES = 3
_TIMEOUT_S = 30.0


def download(url: str, path: Path, *, sha256: tuple[str, ...] = (), otherwise: str) -> Path:
    """Download `url` to `path`, unless it is there already, and return `path`.

    What has arrived is kept as PATH.part with the server's validator (ETag or date) beside it, so that the same call
    resumes it, if the server still has the same file. sha256: accepted first digits; empty: none are known.
    otherwise: words for the error, what to do without a network. Raises `WeightsError` if the server does not answer
    or refuses, and for a file with another sha256, which is removed.
    """
    part, validator = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.validator")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        for last in (False,) * (_NUM_TRIES - 1) + (True,):
            try:
                _receive(url, part, validator, otherwise)
                break
            except httpx.TransportError as error:
                if last:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    raise WeightsError(f"{url} cannot be downloaded: {reason}; {otherwise}") from None
        fsync_file(part)
        put_in_place(part, path)
        discard(validator)
    found = file_sha256(path)
    if sha256 and not found.startswith(sha256):
        from pipeline.weights.kinds import file_kind  # noqa: PLC0415

        try:
            file_kind(path)  # a page, a pointer or a cut file has its own sentence
        finally:
            discard(path)
        raise WeightsError(f"{url} has sha256 {found[:12]}..., expected {sha256[0]}...; the download was removed")
    return path


def _receive(url: str, part: Path, validator: Path, otherwise: str) -> None:
    """Append what is missing to `part`; start it again if the server's file is another one.

    Raises `httpx.TransportError` for an answer that breaks off (httpx counts the bytes of Content-Length).
    """
    kept = part.stat().st_size if part.is_file() and validator.is_file() else 0
    headers = {"Accept-Encoding": "identity"}
    if kept:
        headers |= {"Range": f"bytes={kept}-", "If-Range": validator.read_text()}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S) as answer:
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:  # complete, or of another file
            total = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
            if total is None or int(total[1]) != kept:
                discard(validator)
                raise httpx.ReadError("the kept part does not fit the server's file")
            return
        if answer.is_error:
            raise WeightsError(f"{url} cannot be downloaded: the server answers {answer.status_code}; {otherwise}")
        is_resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
        if not is_resumed:
            kept = 0
            discard(validator)
        total_bytes = kept + int(answer.headers.get("Content-Length", 0))
        tag = answer.headers.get("ETag", "W/")
        if tag.startswith("W/"):  # a weak one does not guarantee equal bytes
            tag = answer.headers.get("Last-Modified", "")
        try:
            with part.open("ab" if is_resumed else "wb") as file:
                if tag:
                    write_bytes_atomically(validator, tag.encode())
                name = part.name.removesuffix(".part")
                with track(f"download {name}", total=total_bytes, unit="bytes", num_before=kept) as on_progress:
                    for chunk in answer.iter_raw():
                        file.write(chunk)
                        on_progress(len(chunk))
        except OSError as error:  # httpx's own errors are none
            raise WriteError(
                f"{part} cannot be written: {error.strerror or error}; free space or fix permissions, then run the "
                "command again: what arrived is kept",
                error.errno,
            ) from None

"""Fetch published weights: download, check, convert, and add them to the weights folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipeline.errors import UsageError, WeightsError
from pipeline.runtime.atomic import discard
from pipeline.runtime.text import unknown_name
from pipeline.store.lock import writer_lock
from pipeline.weights.add import add_weights
from pipeline.weights.download import download
from pipeline.weights.folder import is_added
from pipeline.weights.published import PUBLISHED


def fetch_weights(name: str, folder: Path, *, taken: Collection[str] = ()) -> bool:
    """Download the published weights of that name and add them to a weights folder; return whether they are new.

    taken: see `add_weights`. The original is below FOLDER/downloads until it is converted. Raises `UsageError` for an
    unknown name; `WeightsError` without a network, with the file to bring, and for another file than the published.
    """
    if name not in PUBLISHED:
        raise UsageError(unknown_name("published file of weights", name, PUBLISHED))
    if name in taken:
        raise UsageError(f"the catalog already has weights {name!r} of its own; remove them there to fetch these")
    published = PUBLISHED[name]
    original = folder / "downloads" / published.file_name
    otherwise = (
        f"on a machine with a network, download it, copy it here and run "
        f"`fantrans weights add {published.file_name} --name {name}`"
    )
    with writer_lock(folder):
        if is_added(folder, name):
            return False
        download(published.url, original, sha256=published.sha256, otherwise=otherwise)
        try:
            return add_weights(original, folder, name=name)[1]
        except WeightsError as error:
            raise WeightsError(f"{published.url} is not the file of weights: {error}") from None
        finally:
            discard(original)

"""Batches of cached features for heads: shuffled and augmented for training, in order and clean for evaluation.

Training reads an epoch in pages (shuffle buffers), whose order is the same for all heads: one pass over the cache
serves any number of heads, each of which takes the frames of its own parts from a page, in its own batches. Threads
prefetch pages from the shards. Labels come from the frame index, so that relabelling changes no features.
"""

# B frames of a batch, N frames in total, A action units, C channels, H W rows and columns of a map
from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.cache.reader import Features
from pipeline.errors import DataError, StoreError
from pipeline.faces.views import CLEAN_VIEW, FIRST_AUGMENTED_VIEW, FLIPPED_VIEW
from pipeline.store.shards import ArraySpec
from pipeline.tables import au_column
from pipeline.training.augmentation import shifted

MAX_PAGE_ROWS = 512
MAX_PAGE_BYTES = 2**30
"""Greatest size of a page, whose rows are shuffled together; stored rows are shuffled already, so it can be small."""

NEIGHBOUR_ROWS = 32
"""Number of neighbouring rows that are read into the same page."""

_NUM_THREADS = min(8, os.cpu_count() or 1)  # more than 8 wait for each other: checksums are computed under the GIL
_ROWS_AHEAD = 256


def page_sizes(cache: Features) -> dict[str, int]:
    """Return the number of rows in a page ("rows") and in a run of neighbours ("run").

    With the number of rows, they decide the order of an epoch.
    """
    row_bytes = sum(spec.row_bytes for spec in cache.codec.input_specs)
    num_runs = max(1, min(MAX_PAGE_ROWS, MAX_PAGE_BYTES // row_bytes) // NEIGHBOUR_ROWS)
    return {"rows": num_runs * NEIGHBOUR_ROWS, "run": NEIGHBOUR_ROWS}


class Batch(NamedTuple):
    """Frames of one step, on the device.

    features: by map, as `Codec.decode` returns them. labels_BA: int8 in {0, 1, -1 unknown}.
    """

    features: dict[str, Tensor]
    labels_BA: Tensor
    frame_ids: list[str]


class CachedFrames:
    """The frames of an index that are in a cache.

    Attributes: `rows` (N,) of the cache, ascending; in the same order `labels_NA` (int8) and `frame_ids`; and
    `num_missing`, the number of frames of the index that are not in the cache (no face, or unreadable).
    """

    def __init__(
        self,
        cache: Features,
        frames: pd.DataFrame,
        *,
        aus: tuple[int, ...],
        parts: Collection[str] | None = None,
        at_least: int = 1,
    ) -> None:
        """frames: `FRAME_COLUMNS` and labels of `aus`, of which those in `parts` (default: all) are used.

        Raises `StoreError` if the cache has fewer than `at_least` of them.
        """
        if parts is not None:
            frames = frames[frames["part"].isin(list(parts))]
        found = cache.index[["frame_id", "row"]].merge(frames, on="frame_id").sort_values("row")
        if len(found) < at_least:
            raise StoreError(
                f"{cache.folder} has {len(found)} of {len(frames)} frames"
                + ("" if parts is None else f" of {', '.join(sorted(parts))}")
                + f", fewer than a batch of {at_least}; "
                + ("run `fantrans refresh`, or " if len(found) < len(frames) else "")
                + "lower `train.batch_size`"
            )
        self.num_missing = len(frames) - len(found)
        self.rows = found["row"].to_numpy()
        self.labels_NA = found[[au_column(au) for au in aus]].to_numpy(np.int8, copy=True)
        self.frame_ids: list[str] = found["frame_id"].tolist()


def evaluation_batches(
    cache: Features,
    frames: CachedFrames,
    *,
    batch_size: int,
    view: int = CLEAN_VIEW,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Yield all frames in the order of the cache, of the clean or the flipped view; `DataError` for another view."""
    if view not in (CLEAN_VIEW, FLIPPED_VIEW):
        raise DataError(
            f"view {view} is augmented; evaluation reads view {CLEAN_VIEW} (clean) or {FLIPPED_VIEW} (flipped)"
        )
    starts = range(0, len(frames.rows), batch_size)
    places = [np.arange(start, min(start + batch_size, len(frames.rows))) for start in starts]
    wanted = [(frames.rows[at], view) for at in places]
    for at, stored in zip(places, _read_ahead(cache, wanted, device=torch.device(device)), strict=True):
        features = cache.codec.decode(stored)
        labels_BA = torch.from_numpy(frames.labels_NA[at]).to(device)
        yield Batch(features, labels_BA, [frames.frame_ids[i] for i in at])


@dataclass(frozen=True)
class Page:
    """A shuffle buffer: rows (n,) of the cache, with their stored (encoded) arrays on the device."""

    epoch: int
    number: int
    is_last: bool
    rows: np.ndarray
    stored: dict[str, Tensor]


class TrainingPages:
    """The pages of training epochs: the cache's rows in an order that depends on the epoch's number only."""

    def __init__(
        self,
        cache: Features,
        frames: pd.DataFrame,
        *,
        parts: Collection[str],
        num_views: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """frames: frame_id and part. Rows of `parts` are read, in the order that they have among all rows.

        Epochs alternate between the augmented views below `num_views` (default: all in the cache); without any, they
        read the clean view.
        """
        known = cache.index[["frame_id", "row"]].merge(frames[["frame_id", "part"]], on="frame_id").sort_values("row")
        self._rows, self._is_read = known["row"].to_numpy(), known["part"].isin(list(parts)).to_numpy()
        self._num_views = min(num_views or cache.num_views, cache.num_views)
        self._cache, self._device = cache, torch.device(device)
        self._page_rows = page_sizes(cache)["rows"]

    def view_in(self, epoch: int) -> int:
        """Return the number of the view that an epoch reads."""
        num_augmented = self._num_views - FIRST_AUGMENTED_VIEW
        return FIRST_AUGMENTED_VIEW + epoch % num_augmented if num_augmented > 0 else CLEAN_VIEW

    def epochs(self, first: int, end: int) -> Generator[Page, None, None]:
        """Yield the pages of epochs `first` to `end` - 1."""
        plan = [(epoch, *page) for epoch in range(first, end) for page in self._pages(epoch)]
        wanted = [(rows, self.view_in(epoch)) for epoch, _, _, rows in plan]
        pages = _read_ahead(self._cache, wanted, device=self._device)
        for (epoch, number, is_last, rows), stored in zip(plan, pages, strict=True):
            yield Page(epoch, number, is_last, rows, stored)

    def _pages(self, epoch: int) -> list[tuple[int, bool, np.ndarray]]:
        """Number of each page, whether it is the last, and its rows in ascending order."""
        pages = page_order(len(self._rows), epoch=epoch, page_rows=self._page_rows, neighbour_rows=NEIGHBOUR_ROWS)
        rows = [np.sort(self._rows[page[self._is_read[page]]]) for page in pages]
        return [(i, i == len(pages) - 1, rows[i]) for i in range(len(pages))]


def page_order(num_rows: int, *, epoch: int, page_rows: int, neighbour_rows: int = NEIGHBOUR_ROWS) -> list[np.ndarray]:
    """Return the positions 0 to `num_rows` - 1 in pages of `page_rows`: shuffled runs of about `neighbour_rows`.

    The order depends on the arguments only.
    """
    runs = np.array_split(np.arange(num_rows), max(1, num_rows // neighbour_rows))
    order = np.concatenate([runs[i] for i in np.random.default_rng(epoch).permutation(len(runs))])
    return [order[start : start + page_rows] for start in range(0, num_rows, page_rows)]


class HeadBatches:
    """The batches of one head: frames of its parts, taken from the pages and shuffled, in batches of full size only.

    The batches of an epoch depend on the cache's rows, the parts, the seed, the batch size and the number of the epoch
    only, and not on the other heads.
    """

    def __init__(
        self, cache: Features, frames: CachedFrames, *, batch_size: int, seed: int, max_shift_cells: int = 0
    ) -> None:
        """max_shift_cells: see `augmentation.shifted`."""
        self.frames, self._max_shift_cells = frames, max_shift_cells
        self._codec, self._batch_size, self._seed = cache.codec, batch_size, seed
        self._left_rows = np.empty(0, np.int64)
        self._left: dict[str, Tensor] = {}

    @property
    def num_batches(self) -> int:
        """Number of batches per epoch; frames that do not fill the last batch are not used in that epoch."""
        return len(self.frames.rows) // self._batch_size

    def from_page(self, page: Page) -> Iterator[Batch]:
        """Yield the batches that a page completes; take them all, and pass the pages in the order of the epoch."""
        if page.number == 0:
            self._left_rows = np.empty(0, np.int64)
        mine = np.flatnonzero(np.isin(page.rows, self.frames.rows, assume_unique=True))
        rows = np.concatenate((self._left_rows, page.rows[mine]))
        rng = np.random.default_rng((self._seed, page.epoch, page.number))
        order = rng.permutation(len(rows))
        num_used = len(order) // self._batch_size * self._batch_size
        for chosen in order[:num_used].reshape(-1, self._batch_size):
            stored = {name: self._gathered(name, page.stored[name], mine, chosen) for name in page.stored}
            at = np.searchsorted(self.frames.rows, rows[chosen])
            labels_BA = torch.from_numpy(self.frames.labels_NA[at])
            device = next(iter(stored.values())).device
            maps = self._codec.decode(stored)
            if self._max_shift_cells:
                maps = shifted(maps, rng, max_cells=self._max_shift_cells)
            yield Batch(maps, labels_BA.to(device), [self.frames.frame_ids[i] for i in at])
        rest = order[num_used:]
        if page.is_last:
            self._left, self._left_rows = {}, np.empty(0, np.int64)
            return
        self._left = {name: self._gathered(name, page.stored[name], mine, rest) for name in page.stored}
        self._left_rows = rows[rest]

    def _gathered(self, name: str, stored: Tensor, mine: np.ndarray, chosen: np.ndarray) -> Tensor:
        """Values at the positions `chosen` in the frames left over from earlier pages, followed by this page's own."""
        num_left = len(self._left_rows)
        is_left = chosen < num_left
        from_page = mine[np.maximum(chosen - num_left, 0)] if len(mine) else np.zeros(len(chosen), np.int64)
        if not is_left.any():
            return stored[_index(from_page, stored)]
        values = stored.new_empty((len(chosen), *stored.shape[1:]))
        values[_index(is_left, stored)] = self._left[name][_index(chosen[is_left], stored)]
        values[_index(~is_left, stored)] = stored[_index(from_page[~is_left], stored)]
        return values


def _index(places: np.ndarray, tensor: Tensor) -> Tensor:
    return torch.from_numpy(places).to(tensor.device, non_blocking=True)


def _buffer(spec: ArraySpec, num_rows: int, device: torch.device) -> Tensor:
    """Return a tensor (num_rows, *row_shape) to read into; pinned for a GPU, which copies from it without waiting."""
    shape = (num_rows, *spec.row_shape)
    if device.type == "cuda":
        return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, spec.dtype)).dtype, pin_memory=True)
    return torch.from_numpy(np.empty(shape, spec.dtype))


def _read_ahead(
    cache: Features, wanted: list[tuple[np.ndarray, int]], *, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Yield the codec's arrays for each (rows, view), while threads read the next one, or several small ones."""
    todo = deque(wanted)
    coming: deque[tuple[list[Future[None]], dict[str, Tensor]]] = deque()
    num_coming = 0
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        try:
            for rows_here, _ in wanted:
                while todo and (not coming or num_coming < len(rows_here) + _ROWS_AHEAD):
                    rows, view = todo.popleft()
                    out = {spec.name: _buffer(spec, len(rows), device) for spec in cache.codec.input_specs}
                    runs = [slice(start, start + NEIGHBOUR_ROWS) for start in range(0, len(rows), NEIGHBOUR_ROWS)]
                    coming.append(
                        ([pool.submit(copy_context().run, _fill, cache, rows, view, out, run) for run in runs], out)
                    )
                    num_coming += len(rows)
                futures, out = coming.popleft()
                num_coming -= len(rows_here)
                for future in futures:
                    future.result()
                yield {name: values.to(device, non_blocking=True) for name, values in out.items()}
        finally:
            for future in (future for futures, _ in coming for future in futures):
                future.cancel()


def _fill(cache: Features, rows: np.ndarray, view: int, out: dict[str, Tensor], here: slice) -> None:
    cache.read(rows[here], view=view, out={name: values[here].numpy() for name, values in out.items()})

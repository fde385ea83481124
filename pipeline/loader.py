"""Batches of cached features for heads: shuffled and augmented for training, in order and clean for evaluation.

Threads read ahead into a ring of reused buffers (pinned where the device is CUDA), straight from the shards. The labels
come from the frame index, so relabelling touches no feature.
"""

# B frames of a batch, N frames in all, A action units, C channels, H W rows and columns of a map
from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.cache.reader import CacheReader
from pipeline.errors import CacheError, DataError
from pipeline.records import au_column
from pipeline.views import CLEAN_VIEW, FIRST_AUGMENTED_VIEW, FLIPPED_VIEW

WINDOW_ROWS = 4096
"""Rows that are shuffled among each other; stored rows are shuffled already, so this need not be the whole cache."""


class Batch(NamedTuple):
    """Part of an epoch, on the device.

    features: what the cache's codec decodes, see `Codec.decode`. labels_BA: int8 in {0, 1, -1 unknown}.
    """

    features: dict[str, Tensor]
    labels_BA: Tensor
    frame_ids: list[str]


class CachedBatches:
    """The frames of an index that a cache holds, as batches.

    Attributes: `labels_NA` int8 and `frame_ids` of all N frames, in the order of evaluation; `num_missing` frames of
    the index that the cache does not hold (no face, unreadable).
    """

    def __init__(
        self,
        cache: CacheReader,
        frames: pd.DataFrame,
        *,
        aus: tuple[int, ...],
        batch_size: int,
        is_training: bool,
        parts: Collection[str] | None = None,
        view: int = CLEAN_VIEW,
        num_views: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        num_threads: int = 2,
        num_ahead: int = 4,
    ) -> None:
        """frames: `FRAME_COLUMNS` and labels of `aus`; only those in `parts` (default: all) are read.

        Training reads augmented views below `num_views` (default: all that the cache has), or the clean one if there
        are none, shuffled, whole batches only.
        Evaluation reads `view` (clean or flipped), in the cache's order, to the last frame. Raises `CacheError` or
        `DataError`.
        """
        if not is_training and view not in (CLEAN_VIEW, FLIPPED_VIEW):
            raise DataError(f"view {view} is an augmented one, and evaluation reads {CLEAN_VIEW} or {FLIPPED_VIEW}")
        if parts is not None:
            frames = frames[frames["part"].isin(list(parts))]
        found = cache.index[["frame_id", "row"]].merge(frames, on="frame_id").sort_values("row")
        self.num_missing = len(frames) - len(found)
        if len(found) < (batch_size if is_training else 1):
            raise CacheError(
                f"{cache.folder} holds {len(found)} of the {len(frames)} frames asked for, too few for one batch of "
                f"{batch_size}; run `fantrans refresh`, or take smaller batches"
            )
        self.labels_NA = found[[au_column(au) for au in aus]].to_numpy(np.int8, copy=True)
        self.frame_ids: list[str] = found["frame_id"].tolist()
        self._rows = found["row"].to_numpy()
        self._cache, self._batch_size, self._is_training, self._view = cache, batch_size, is_training, view
        self._num_views = min(num_views or cache.num_views, cache.num_views)
        self._seed, self._device = seed, torch.device(device)
        self._num_threads, self._num_ahead = num_threads, num_ahead

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        num_rows = len(self._rows)
        return num_rows // self._batch_size if self._is_training else -(-num_rows // self._batch_size)

    def view_of(self, epoch: int) -> int:
        """The view that an epoch reads: in training, augmented ones in turn."""
        num_augmented = self._num_views - FIRST_AUGMENTED_VIEW
        if not self._is_training:
            return self._view
        return FIRST_AUGMENTED_VIEW + epoch % num_augmented if num_augmented > 0 else CLEAN_VIEW

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, a function of seed and number alone. The tensors are the caller's to keep."""
        order = self._shuffled(number) if self._is_training else np.arange(len(self._rows))
        starts = range(0, self.num_batches * self._batch_size, self._batch_size)
        todo = deque(order[start : start + self._batch_size] for start in starts)
        free = [_Slot(self._cache, self._batch_size, self._device) for _ in range(min(self._num_ahead, len(todo)))]
        coming: deque[tuple[Future[None], _Slot, np.ndarray]] = deque()
        with ThreadPoolExecutor(self._num_threads) as pool:
            try:
                while todo or coming:
                    while todo and free:
                        slot, positions = free.pop(), todo.popleft()
                        future = pool.submit(slot.fill, self._rows[positions], self.view_of(number))
                        coming.append((future, slot, positions))
                    future, slot, positions = coming.popleft()
                    future.result()
                    features = slot.on_device(len(positions))
                    free.append(slot)
                    labels_BA = torch.from_numpy(self.labels_NA[positions]).to(self._device)
                    yield Batch(features, labels_BA, [self.frame_ids[i] for i in positions])
            finally:
                for future, _, _ in coming:
                    future.cancel()

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Positions in a random order that reads runs of neighbouring rows at about the same time."""
        random = np.random.default_rng([self._seed, epoch])
        runs = np.array_split(np.arange(len(self._rows)), max(1, len(self._rows) // _RUN_ROWS))
        order = np.concatenate([runs[i] for i in random.permutation(len(runs))])
        windows = (order[start : start + WINDOW_ROWS] for start in range(0, len(order), WINDOW_ROWS))
        return np.concatenate([random.permutation(window) for window in windows])


_RUN_ROWS = 64


class _Slot:
    """A batch's buffers. They are filled again only when their copy to the device has finished."""

    def __init__(self, cache: CacheReader, batch_size: int, device: torch.device) -> None:
        self._cache, self._device = cache, device
        is_pinned = device.type == "cuda"
        self._tensors = {
            s.name: torch.empty((batch_size, *s.row_shape), dtype=getattr(torch, s.dtype), pin_memory=is_pinned)
            for s in cache.input_specs
        }
        self._copied: torch.cuda.Event | None = None

    def fill(self, rows: np.ndarray, view: int) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        buffers = {name: tensor.numpy()[: len(rows)] for name, tensor in self._tensors.items()}
        self._cache.read(rows, view=view, out=buffers)

    def on_device(self, num_rows: int) -> dict[str, Tensor]:
        filled = {name: tensor[:num_rows] for name, tensor in self._tensors.items()}
        copies = {name: tensor.to(self._device, non_blocking=True, copy=True) for name, tensor in filled.items()}
        if self._device.type == "cuda":
            self._copied = torch.cuda.current_stream(self._device).record_event()
        return self._cache.codec.decode(copies)

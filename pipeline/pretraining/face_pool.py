"""A pool of rendered faces on disk, with the 68 landmarks and the box of each: what FAN and ResNet-18 are trained on.

Images are RGB uint8 (H, W, 3), boxes xyxy, pixel centres at whole numbers.
"""

# N faces of a pool
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.maps import NUM_LANDMARKS
from pipeline.errors import DataError
from pipeline.runtime.atomic import write_json
from pipeline.runtime.process_pool import process_pool
from pipeline.runtime.progress import track

if TYPE_CHECKING:
    from pipeline.synthetic.bank import Bank

TRAIN_FACES, TEST_FACES, AUGMENTATION, START = 101, 102, 103, 104
"""First words of the random seeds, one per purpose.

They differ from those of the rendered data sets, so that an identity of one purpose occurs in no other.
"""

FACE_SIZE_PX = 288
"""Side of the rendered images."""

_CHUNK_FACES = 32
_NAMES = ("images", "landmarks", "boxes")


@dataclasses.dataclass(frozen=True)
class FacePool:
    """Rendered faces: images uint8 (N, S, S, 3), landmarks float32 px (N, 68, 2) and boxes float32 px (N, 4)."""

    images: np.ndarray
    landmarks: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def render_pool(
    folder: Path,
    *,
    bank_path: Path,
    num_faces: int,
    seed: int,
    size_px: int,
    purpose: int = TRAIN_FACES,
    max_angle_deg: float = 35.0,
    num_workers: int = 2,
) -> FacePool:
    """Render `num_faces` faces of as many identities into `folder`, or open them if they exist.

    Face i depends on (purpose, seed, i), `size_px` and `max_angle_deg` only. A killed rendering resumes: only missing
    faces are rendered. Raises `DataError` if `folder` holds faces of other settings.
    """
    numbers = {"num_faces": num_faces, "seed": seed, "size_px": size_px, "purpose": purpose}
    settings = {**numbers, "max_angle_deg": max_angle_deg}
    manifest = folder / "pool.json"
    if not manifest.is_file():
        _create_arrays(folder, num_faces=num_faces, size_px=size_px)
        write_json(manifest, settings)
    found = json.loads(manifest.read_text())
    if found != settings:
        raise DataError(
            f"{folder} holds faces rendered with {found}, expected {settings}; pass another folder or delete this one"
        )
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in (*_NAMES, "is_done")}
    missing = np.flatnonzero(~arrays["is_done"])
    chunks = [missing[first : first + _CHUNK_FACES] for first in range(0, len(missing), _CHUNK_FACES)]
    if chunks:
        render = partial(_render_faces, bank_path=bank_path, max_angle_deg=max_angle_deg, size_px=size_px)
        _render_chunks(chunks, arrays, num_workers, partial(render, seed_words=(purpose, seed)))
    return FacePool(*(arrays[name] for name in _NAMES))


def _create_arrays(folder: Path, *, num_faces: int, size_px: int) -> None:
    """Create empty arrays in sparse files."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, tuple[int, ...]]
    shapes = {"images": (size_px, size_px, 3), "landmarks": (NUM_LANDMARKS, 2), "boxes": (4,), "is_done": ()}
    dtypes = {"images": "uint8", "landmarks": "float32", "boxes": "float32", "is_done": "bool"}
    for name, shape in shapes.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtypes[name], (num_faces, *shape)).flush()


def _render_chunks(
    chunks: list[np.ndarray],
    arrays: dict[str, np.ndarray],
    num_workers: int,
    render: Callable[[np.ndarray], tuple[np.ndarray, ...]],
) -> None:
    pool: AbstractContextManager[Executor] = ThreadPoolExecutor(1) if num_workers == 1 else process_pool(num_workers)
    with pool as workers, track("render faces", total=sum(map(len, chunks)), unit="faces") as on_progress:
        jobs = {workers.submit(render, chunk): chunk for chunk in chunks}
        for job in as_completed(jobs):
            chunk = jobs.pop(job)
            for name, values in zip(_NAMES, job.result(), strict=True):
                arrays[name][chunk] = values
            arrays["is_done"][chunk] = True
            on_progress(len(chunk))


def _render_faces(
    numbers: np.ndarray, *, bank_path: Path, seed_words: tuple[int, int], size_px: int, max_angle_deg: float
) -> tuple[np.ndarray, ...]:
    """Images, landmarks and boxes of the faces with these numbers; runs in a worker."""
    faces = []
    for number in numbers.tolist():
        rng = np.random.default_rng([*seed_words, number])
        faces.append(_close_face(_bank(bank_path), rng, size_px=size_px, max_angle_deg=max_angle_deg))
    return tuple(np.stack(values) for values in zip(*faces, strict=True))


def _close_face(
    bank: Bank, rng: np.random.Generator, *, size_px: int, max_angle_deg: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, landmarks and box of a random face, so close that the FAN's crop has about the px of its input."""
    # the renderer needs the extra `synth`, which training on an existing pool does not
    from pipeline.synthetic.camera import sample_camera  # noqa: PLC0415
    from pipeline.synthetic.expressions import random_expression  # noqa: PLC0415
    from pipeline.synthetic.identity import sample_identity  # noqa: PLC0415
    from pipeline.synthetic.render import render_face  # noqa: PLC0415

    camera = dataclasses.replace(
        sample_camera(rng, max_angle_deg=max_angle_deg),
        face_frac=rng.uniform(0.4, 0.55),
        centre_frac=tuple(rng.uniform(0.46, 0.54, 2)),
    )
    identity, expression = sample_identity(bank, rng, texture_px=256), random_expression(bank, rng)
    image, truth = render_face(bank, identity, expression, camera, rng, size_px=size_px)
    return image, truth.landmarks, truth.box_xyxy


@cache
def _bank(path: Path) -> Bank:
    """The bank, loaded once per worker."""
    from pipeline.synthetic.bank import load_bank  # noqa: PLC0415 - as in `_close_face`

    return load_bank(path)

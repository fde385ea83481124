"""Scenes with several faces: rendered once to disk, then zoomed, cropped, mosaicked and recoloured for training.

Scene i is a function of (seed, i).
"""

# N faces of a scene, H height, W width
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.runtime.atomic import write_atomically
from pipeline.runtime.progress import track
from pipeline.synthetic.bank import load_bank
from pipeline.synthetic.render import SceneTruth, random_scene

SCENES_PER_CHUNK = 50
MIN_FACE_PX = 11.0
"""Smaller faces (square root of the box's area) count neither as face nor as background."""
MIN_SEEN_FRAC, MIN_TOUCHED_FRAC = 0.7, 0.1
"""Faces with a visible fraction below the first count neither as face nor as background (WIDER FACE calls more than
30 % hidden heavy occlusion). Faces with a fraction below the second inside the image are removed."""


class Scene(NamedTuple):
    """RGB uint8 (H, W, 3) and its faces in px: boxes xyxy (N, 4), points (N, 5, 2), and which of them to learn (N,)."""

    image: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    is_learned: np.ndarray


class SceneFolder:
    """Rendered scenes as memory-mapped chunks."""

    def __init__(self, folder: Path, *, num_scenes: int) -> None:
        self._num_scenes = num_scenes
        names = [_chunk_name(i) for i in range(math.ceil(num_scenes / SCENES_PER_CHUNK))]
        self._images = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in names]
        self._truth = []
        for name in names:
            with np.load(folder / f"{name}.npz") as truth:
                ends = truth["num_faces"].cumsum()[:-1]
                self._truth.append([np.split(truth[field], ends) for field in SceneTruth._fields])

    def __len__(self) -> int:
        return self._num_scenes

    def __getitem__(self, index: int) -> Scene:
        chunk, row = divmod(index, SCENES_PER_CHUNK)
        boxes, points, seen = (values[row] for values in self._truth[chunk])
        return marked(Scene(self._images[chunk][row], boxes, points, seen >= MIN_SEEN_FRAC))


def render_scenes(
    folder: Path, *, bank_path: Path, num_scenes: int, seed: int, size_px: int, num_workers: int
) -> SceneFolder:
    """Render the missing chunks of scenes 0..num_scenes - 1 into `folder`, each atomically; return all scenes."""
    chunks = range(math.ceil(num_scenes / SCENES_PER_CHUNK))
    missing = [i for i in chunks if not (folder / f"{_chunk_name(i)}.npy").is_file()]
    render = partial(_render_chunk, folder, bank_path=bank_path, seed=seed, size_px=size_px)
    if missing:
        load_bank(bank_path)  # builds it once, before the workers need it
    with track("render scenes", total=len(missing) * SCENES_PER_CHUNK, unit="scenes") as on_progress:
        if num_workers > 1:
            with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
                for _ in pool.map(render, missing):
                    on_progress(SCENES_PER_CHUNK)
        else:
            for i in missing:
                render(i)
                on_progress(SCENES_PER_CHUNK)
    return SceneFolder(folder, num_scenes=num_scenes)


def _chunk_name(chunk: int) -> str:
    return f"scenes-{chunk:05}"


def _render_chunk(folder: Path, chunk: int, *, bank_path: Path, seed: int, size_px: int) -> None:
    indices = range(chunk * SCENES_PER_CHUNK, (chunk + 1) * SCENES_PER_CHUNK)
    images, truths = zip(*scenes(bank_path, seed=seed, indices=indices, size_px=size_px), strict=True)
    faces = SceneTruth(*(np.concatenate(values) for values in zip(*truths, strict=True)))
    num_faces = np.array([len(truth.boxes) for truth in truths])
    write_atomically(
        folder / f"{_chunk_name(chunk)}.npz", lambda temp: np.savez(temp, num_faces=num_faces, **faces._asdict())
    )
    write_atomically(folder / f"{_chunk_name(chunk)}.npy", lambda temp: np.save(temp, np.stack(images)))


def scenes(
    bank_path: Path, *, seed: int, indices: Sequence[int], size_px: int
) -> Iterator[tuple[np.ndarray, SceneTruth]]:
    """Yield image, RGB uint8 (size, size, 3), and faces of each scene."""
    bank = load_bank(bank_path)
    for i in indices:
        yield random_scene(bank, np.random.default_rng([seed, i]), size_px=size_px)


def zoomed(scene: Scene, side_px: int, rng: np.random.Generator) -> Scene:
    """Cut a square window and resize it to `side_px`; mostly one face gets a random size, uniform in log."""
    scene_px = min(scene.image.shape[:2])
    if len(scene.boxes) and rng.random() < 0.8:
        x1, y1, x2, y2 = scene.boxes[rng.integers(len(scene.boxes))]
        face_px = max(x2 - x1, y2 - y1)
        wanted_px = math.exp(rng.uniform(math.log(18), math.log(0.9 * side_px)))
        window_px = side_px * face_px / wanted_px
        centre = np.array([x1 + x2, y1 + y2]) / 2
    else:
        window_px = scene_px * rng.uniform(0.4, 1.2)
        centre = rng.uniform(0, scene_px, 2)
    return _window_about(scene, centre, round(np.clip(window_px, side_px / 2.5, 1.1 * scene_px)), side_px, rng)


def cropped(scene: Scene, side_px: int, rng: np.random.Generator) -> Scene:
    """Cut a square of `side_px` without resizing, mostly around a face."""
    corners = scene.boxes.reshape(-1, 2, 2)
    if len(corners) and rng.random() < 0.8:
        centre = corners[rng.integers(len(corners))].mean(0)
    else:
        centre = rng.uniform(0, min(scene.image.shape[:2]), 2)
    return _window_about(scene, centre, side_px, side_px, rng)


def _window_about(scene: Scene, centre: np.ndarray, window_px: int, side_px: int, rng: np.random.Generator) -> Scene:
    """Cut a window with `centre` at a random place in it, and resize it."""
    scene_px = min(scene.image.shape[:2])
    low, high = sorted((0, scene_px - window_px))
    x, y = np.clip(centre - window_px * rng.uniform(0.1, 0.9, 2), low, high).round().astype(int)
    return _window(scene, int(x), int(y), window_px, side_px, fill=rng.integers(0, 256, 3))


def _window(scene: Scene, x: int, y: int, window_px: int, side_px: int, *, fill: np.ndarray) -> Scene:
    """Cut the square from (x, y) and resize it; pixels outside the scene get the colour `fill`."""
    height, width = scene.image.shape[:2]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + window_px, width), min(y + window_px, height)
    scale = side_px / window_px
    left, top, right, bottom = (round(v * scale) for v in (x1 - x, y1 - y, x2 - x, y2 - y))
    part = cv2.resize(
        scene.image[y1:y2, x1:x2],
        (right - left, bottom - top),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
    )
    image = np.empty((side_px, side_px, 3), np.uint8)
    image[:] = fill
    image[top:bottom, left:right] = part
    scale_xy = np.array([(right - left) / (x2 - x1), (bottom - top) / (y2 - y1)])

    def moved(xy: np.ndarray) -> np.ndarray:
        moved_xy: np.ndarray = ((xy - (x1, y1) + 0.5) * scale_xy - 0.5 + (left, top)).astype(np.float32)
        return moved_xy

    boxes = moved(scene.boxes.reshape(-1, 2, 2)).reshape(-1, 4)
    return Scene(image, boxes, moved(scene.points), scene.is_learned)


def mosaic(parts: Sequence[Scene]) -> Scene:
    """Join four square scenes of one size: upper left, upper right, lower left, lower right; clips their faces."""
    side = parts[0].image.shape[0]
    rows = [np.concatenate([parts[i].image, parts[i + 1].image], axis=1) for i in (0, 2)]
    parts = [marked(part) for part in parts]
    offsets = np.array([(0, 0), (side, 0), (0, side), (side, side)], np.float32)
    boxes = [part.boxes.clip(-0.5, side - 0.5) + np.tile(o, 2) for part, o in zip(parts, offsets, strict=True)]
    points = [part.points + o for part, o in zip(parts, offsets, strict=True)]
    is_learned = np.concatenate([part.is_learned for part in parts])
    return Scene(np.concatenate(rows), np.concatenate(boxes), np.concatenate(points), is_learned)


def mirrored(scene: Scene) -> Scene:
    """Mirror left and right, including the order of the points."""
    last = scene.image.shape[1] - 1
    boxes = scene.boxes.copy()
    boxes[:, [0, 2]] = last - scene.boxes[:, [2, 0]]
    points = scene.points[:, [1, 0, 2, 4, 3]].copy()
    points[..., 0] = last - points[..., 0]
    return Scene(np.ascontiguousarray(scene.image[:, ::-1]), boxes, points, scene.is_learned)


def marked(scene: Scene) -> Scene:
    """Remove faces that are almost outside; unmark tiny and cut faces for learning."""
    height, width = scene.image.shape[:2]
    x1, y1, x2, y2 = scene.boxes.T
    area = (x2 - x1) * (y2 - y1)
    inside = (
        (x2.clip(-0.5, width - 0.5) - x1.clip(-0.5, width - 0.5))
        * (y2.clip(-0.5, height - 0.5) - y1.clip(-0.5, height - 0.5))
        / np.maximum(area, 1e-6)
    )
    is_learned = scene.is_learned & (np.sqrt(area) >= MIN_FACE_PX) & (inside >= MIN_SEEN_FRAC)
    kept = inside >= MIN_TOUCHED_FRAC
    return Scene(scene.image, scene.boxes[kept], scene.points[kept], is_learned[kept])


def occlude(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return the image with flat or noisy patches, over half of the faces and elsewhere."""
    image = scene.image.copy()
    height, width = image.shape[:2]
    sizes = scene.boxes[:, 2:] - scene.boxes[:, :2]
    places = [
        (box[:2] + rng.uniform(-0.1, 0.9, 2) * size, size * rng.uniform(0.1, 0.55, 2))
        for box, size in zip(scene.boxes, sizes, strict=True)
        if rng.random() < 0.5
    ]
    places += [(rng.uniform(0, width, 2), rng.uniform(8, 0.3 * width, 2)) for _ in range(rng.integers(0, 3))]
    for corner, size in places:
        x1, y1 = np.clip(corner, 0, (width, height)).astype(int)
        x2, y2 = np.clip(corner + size, 0, (width, height)).astype(int)
        patch = image[y1:y2, x1:x2]
        patch[:] = rng.integers(0, 256, patch.shape if rng.random() < 0.3 else 3)
    return image


def with_scrambled_face(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return the image with a copy of one face whose tiles are shuffled, at a place without a face: a hard negative."""
    height, width = scene.image.shape[:2]
    corners = scene.boxes[rng.integers(len(scene.boxes))].reshape(2, 2)
    (x1, y1), (x2, y2) = corners.round().astype(int).clip(0, (width, height))
    num_tiles = int(rng.integers(2, 5))
    tile_h, tile_w = (y2 - y1) // num_tiles, (x2 - x1) // num_tiles
    h, w = tile_h * num_tiles, tile_w * num_tiles
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    is_over_face = ((scene.boxes[:, :2] < (x + w, y + h)) & (scene.boxes[:, 2:] > (x, y))).all(1).any()
    if min(tile_h, tile_w) < 2 or is_over_face:
        return scene.image
    face = scene.image[y1 : y1 + h, x1 : x1 + w].reshape(num_tiles, tile_h, num_tiles, tile_w, 3)
    tiles = rng.permutation(face.swapaxes(1, 2).reshape(-1, tile_h, tile_w, 3))
    is_turned = rng.random(len(tiles)) < 0.5
    tiles[is_turned] = tiles[is_turned, ::-1, ::-1]
    image = scene.image.copy()
    image[y : y + h, x : x + w] = tiles.reshape(num_tiles, num_tiles, tile_h, tile_w, 3).swapaxes(1, 2).reshape(h, w, 3)
    return image


def recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate another camera: white balance, exposure, contrast, saturation, blur, resolution, noise, JPEG."""
    if rng.random() < 0.3:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        saturation = rng.choice([0.0, rng.uniform(0.2, 1.5)], p=[0.4, 0.6])
        image = cv2.addWeighted(image, saturation, np.repeat(grey, 3, 2), 1 - saturation, 0)
    if rng.random() < 0.8:
        levels = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.55, 1.7) * rng.uniform(0.85, 1.15, 3)
        levels = (levels - 0.5) * rng.uniform(0.6, 1.4) + 0.5 + rng.uniform(-0.15, 0.15)
        image = cv2.LUT(image, (levels.clip(0, 1) * 255).astype(np.uint8)[None])
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 2.0))
    if rng.random() < 0.15:
        side, small = image.shape[0], round(image.shape[0] * rng.uniform(0.35, 0.9))
        image = cv2.resize(cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), (side, side))
    if rng.random() < 0.25:
        noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(1, 14)
        image = (image + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))])
        image = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
    return image

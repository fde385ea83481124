"""Trains and scores a FAN on rendered faces, whose 68 landmarks are known; no photograph is seen.

Faces are rendered once into a pool on disk, then cropped, turned, flipped and spoilt anew at each step. A run is a pure
function of its settings: batch and pixels of step i do not depend on where a run was stopped and resumed.

Shapes: B faces, P 68 landmarks, H W rows and columns; images RGB uint8 (H, W, 3), boxes xyxy, pixel centres at whole
numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cv2
import numpy as np
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from models.fan import FAN, INPUT_SIZE_PX, NUM_LANDMARKS, decode_landmarks, widened
from pipeline.config import CropConfig, Fraction, PositiveFloat, PositiveInt, Settings
from pipeline.errors import DataError, WeightsError
from pipeline.runtime.atomic import file_sha256, write_bytes_atomically
from pipeline.runtime.checkpoint import Checkpoint
from pipeline.runtime.progress import track

if TYPE_CHECKING:
    from pipeline.synthetic.bank import Bank

TRAIN_FACES, TEST_FACES, AUGMENTATION, START = 101, 102, 103, 104
"""First words of the seeds, one a purpose: no identity of one purpose occurs in another, nor in a rendered data set."""

EYE_CORNERS = (36, 45)
"""Outer eye corners, iBUG 37 and 46: their distance is the unit of the error."""

_MIRRORED_RUNS = ((0, 17), (17, 27), (31, 36), (48, 55), (60, 65))
_MIRRORED_PAIRS = ((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46), (55, 59), (56, 58), (65, 67))
_CHUNK_FACES = 32
FACE_SIZE_PX = 288


def mirrored_order() -> np.ndarray:
    """Landmark that takes each one's place in a mirrored face, int (68,)."""
    order = np.arange(NUM_LANDMARKS)
    for first, end in _MIRRORED_RUNS:
        order[first:end] = order[first:end][::-1].copy()
    for a, b in _MIRRORED_PAIRS:
        order[a], order[b] = b, a
    return order


class FanTraining(Settings):
    """Everything that decides the weights that come out."""

    width: PositiveInt
    num_stacks: Annotated[int, Field(ge=2)] = 2
    pooling: Literal["avg", "max"] = "avg"
    num_steps: PositiveInt
    batch_size: PositiveInt = 8
    small_frac: Fraction = 0.7
    """First part of a training from nothing, taken at half the input's size, where a step costs a quarter."""
    max_lr: PositiveFloat = 3e-3
    sigma_cells: PositiveFloat = 1.2
    """Deviation of the target's Gaussian in cells of the heatmap."""
    peak_weight: Annotated[float, Field(ge=0)] = 20.0
    """Squared error counts 1 + peak_weight * target times: nearly all cells are background."""
    ema_decay: Fraction = 0.995
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the forward pass; the weights are fp32."""
    seed: Annotated[int, Field(ge=0)] = 0
    start_sha256: str | None = None
    """Weights that the training goes on from, of this width or of half of it; `train_fan` fills it in."""
    num_faces: PositiveInt = 5000
    """Rendered faces of the pool."""
    face_size_px: PositiveInt = FACE_SIZE_PX


# ---------------------------------------------------------------------------------------------------------- the pool


@dataclasses.dataclass(frozen=True)
class FacePool:
    """N rendered faces on disk: images uint8 (N, size, size, 3), landmarks (N, 68, 2) and boxes (N, 4) float32 px."""

    images: np.ndarray
    landmarks: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


_NAMES = ("images", "landmarks", "boxes")


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
    """Render `num_faces` faces of as many identities into `folder`, or open those that are there.

    Face i depends on (purpose, seed, i) alone. A stopped rendering resumes. Raises `DataError` where `folder` holds
    faces of other settings.
    """
    numbers = {"num_faces": num_faces, "seed": seed, "size_px": size_px, "purpose": purpose}
    made_from = {**numbers, "max_angle_deg": max_angle_deg}
    manifest = folder / "pool.json"
    if not manifest.is_file():
        _lay_out(folder, num_faces=num_faces, size_px=size_px)
        write_bytes_atomically(manifest, json.dumps(made_from).encode())
    if json.loads(manifest.read_text()) != made_from:
        raise DataError(
            f"{folder} holds faces rendered with {manifest.read_text()}, expected {json.dumps(made_from)}; "
            "give another folder or delete this one"
        )
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in (*_NAMES, "is_done")}
    chunks = [(first, min(first + _CHUNK_FACES, num_faces)) for first in range(0, num_faces, _CHUNK_FACES)]
    chunks = [(first, end) for first, end in chunks if not arrays["is_done"][first:end].all()]
    if chunks:
        render = partial(_render_range, bank_path=bank_path, max_angle_deg=max_angle_deg, size_px=size_px)
        _render_chunks(chunks, arrays, num_workers, partial(render, seed_words=(purpose, seed)))
    return FacePool(*(arrays[name] for name in _NAMES))


def _lay_out(folder: Path, *, num_faces: int, size_px: int) -> None:
    """Make empty arrays, which take room on disk as they fill."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, tuple[int, ...]]
    shapes = {"images": (size_px, size_px, 3), "landmarks": (NUM_LANDMARKS, 2), "boxes": (4,), "is_done": ()}
    dtypes = {"images": "uint8", "landmarks": "float32", "boxes": "float32", "is_done": "bool"}
    for name, shape in shapes.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtypes[name], (num_faces, *shape)).flush()


def _render_chunks(
    chunks: list[tuple[int, int]],
    arrays: dict[str, np.ndarray],
    num_workers: int,
    render: Callable[[int, int], tuple[np.ndarray, ...]],
) -> None:
    pool: Executor = (
        ThreadPoolExecutor(1)
        if num_workers == 1
        else ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
    )
    with pool as workers, track("render faces", total=sum(end - first for first, end in chunks), unit="faces") as step:
        jobs = {workers.submit(render, *chunk): chunk for chunk in chunks}
        for job in as_completed(jobs):
            first, end = jobs.pop(job)
            for name, values in zip(_NAMES, job.result(), strict=True):
                arrays[name][first:end] = values
            arrays["is_done"][first:end] = True
            step(end - first)


def _render_range(
    first: int, end: int, *, bank_path: Path, seed_words: tuple[int, int], size_px: int, max_angle_deg: float
) -> tuple[np.ndarray, ...]:
    """Images, landmarks and boxes of faces `first` to `end`; runs in a worker."""
    faces = []
    for i in range(first, end):
        rng = np.random.default_rng([*seed_words, i])
        faces.append(_close_face(_bank(bank_path), rng, size_px=size_px, max_angle_deg=max_angle_deg))
    return tuple(np.stack(values) for values in zip(*faces, strict=True))


def _close_face(
    bank: Bank, rng: np.random.Generator, *, size_px: int, max_angle_deg: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, landmarks and box of anybody, so close that a FAN's crop has about as many px as its input."""
    # Rendering is an extra, which training from a pool can do without.
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
    """The bank, loaded once a worker."""
    from pipeline.synthetic.bank import load_bank  # noqa: PLC0415

    return load_bank(path)


# ------------------------------------------------------------------------------------------------------ augmentation


def crop_affine(
    box: np.ndarray,
    size_px: int,
    *,
    side_frac: float,
    rotation_deg: float = 0.0,
    scale: float = 1.0,
    shift_frac: tuple[float, float] = (0.0, 0.0),
    is_flipped: bool = False,
) -> np.ndarray:
    """Affine (2, 3) from image px to crop px: a square of side `side_frac` (width + height) / `scale` round the box."""
    width, height = box[2] - box[0], box[3] - box[1]
    side = (width + height) * side_frac / scale
    centre = np.array([(box[0] + box[2]) / 2 + shift_frac[0] * side, (box[1] + box[3]) / 2 + shift_frac[1] * side])
    cos, sin = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    linear = np.array([[cos, sin], [-sin, cos]]) * size_px / side
    if is_flipped:
        linear[0] *= -1
    return np.concatenate((linear, ((size_px - 1) / 2 - linear @ centre)[:, None]), 1)


def transformed(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Points (..., 2) under an affine (2, 3)."""
    return points @ affine[:, :2].T + affine[:, 2]


def augmented(pool: FacePool, index: int, rng: np.random.Generator, *, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """A face of the pool as training sees it: crop uint8 (size_px, size_px, 3) and landmarks (68, 2) in its px."""
    box = pool.boxes[index].astype(np.float64)
    span = np.array([box[2] - box[0], box[3] - box[1]])
    box += np.tile(span, 2) * rng.uniform(-0.08, 0.08, 4)
    is_flipped = bool(rng.random() < 0.5)
    affine = crop_affine(
        box,
        INPUT_SIZE_PX,
        side_frac=CropConfig().side_per_box_frac,
        is_flipped=is_flipped,
        rotation_deg=rng.uniform(-30, 30) * rng.uniform(),
        scale=math.exp(rng.uniform(math.log(0.7), math.log(1.35))),
        shift_frac=tuple(rng.uniform(-0.06, 0.06, 2)),
    )
    border = int(rng.choice([cv2.BORDER_CONSTANT, cv2.BORDER_REFLECT_101, cv2.BORDER_REPLICATE], p=[0.5, 0.4, 0.1]))
    crop = cv2.warpAffine(np.asarray(pool.images[index]), affine, (INPUT_SIZE_PX, INPUT_SIZE_PX), borderMode=border)
    landmarks = transformed(pool.landmarks[index].astype(np.float64), affine)
    if is_flipped:
        landmarks = landmarks[mirrored_order()]
    if size_px != INPUT_SIZE_PX:
        crop = cv2.resize(crop, (size_px, size_px), interpolation=cv2.INTER_AREA)
        landmarks = (landmarks + 0.5) * size_px / INPUT_SIZE_PX - 0.5
    return _degrade(_occluded(crop, pool, rng), rng), landmarks


def _occluded(crop: np.ndarray, pool: FacePool, rng: np.random.Generator) -> np.ndarray:
    """`crop` with up to three patches of flat colour, noise or another face pasted over it, in half of all cases."""
    if rng.random() < 0.5:
        return crop
    size = len(crop)
    for _ in range(rng.integers(1, 4)):
        height, width = rng.integers(size // 16, size // 3, 2)
        y, x = rng.integers(-height // 2, size - height // 2), rng.integers(-width // 2, size - width // 2)
        area = np.zeros((size, size), np.uint8)
        if rng.random() < 0.5:
            centre, axes = (int(x + width // 2), int(y + height // 2)), (int(width // 2), int(height // 2))
            cv2.ellipse(area, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        else:
            area[max(y, 0) : y + height, max(x, 0) : x + width] = 1
        crop = np.where(area[..., None] == 1, _patch(size, pool, rng), crop)
    return crop


def _patch(size: int, pool: FacePool, rng: np.random.Generator) -> np.ndarray:
    """Something (size, size, 3) to cover a face with: flat colour, coarse noise or a turned other face."""
    kind = rng.integers(3)
    if kind == 2:
        other = np.asarray(pool.images[rng.integers(len(pool))])
        return cv2.resize(np.rot90(other, int(rng.integers(4))), (size, size))
    cells = (1, 1) if kind == 0 else rng.integers(2, 24, 2)
    return cv2.resize(rng.integers(0, 256, (*cells, 3), dtype=np.uint8), (size, size))


def _degrade(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`crop` with another sharpness, light, colour, noise and JPEG quality."""
    size = len(crop)
    if rng.random() < 0.25:  # a small face in the frame, or a poor lens
        small = int(size * rng.uniform(0.3, 0.9))
        crop = cv2.resize(cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA), (size, size))
    if rng.random() < 0.2:
        crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.3, 2.0) * size / INPUT_SIZE_PX + 0.2)
    levels = np.linspace(0, 1, 256)[:, None] ** math.exp(rng.uniform(-0.5, 0.5)) * rng.uniform(0.75, 1.25, 3)
    levels = (levels - 0.5) * rng.uniform(0.6, 1.3) + 0.5 + rng.uniform(-0.12, 0.12)
    crop = cv2.LUT(np.ascontiguousarray(crop), (levels.clip(0, 1) * 255).astype(np.uint8)[None])
    grey_frac = 1.0 if rng.random() < 0.12 else rng.uniform(0, 0.5)
    grey = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    crop = cv2.addWeighted(grey, grey_frac, crop, 1 - grey_frac, 0)
    if rng.random() < 0.5:
        noise = rng.standard_normal(crop.shape, np.float32) * np.float32(rng.uniform(0, 15))
        crop = (crop + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        jpeg = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 90))])[1]
        crop = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))
    return crop


# ---------------------------------------------------------------------------------------------------------- training


def gaussian_heatmaps(landmarks_BP2: Tensor, *, size_px: int, sigma_cells: float, stride: int = 4) -> Tensor:
    """Targets (B, P, size_px / stride, size_px / stride): 1 at each landmark, given in px of the input."""
    cells_BP2 = (landmarks_BP2 + 0.5) / stride - 0.5
    grid = torch.arange(size_px // stride, dtype=torch.float32)
    falls = torch.exp(-((grid - cells_BP2[..., None]) ** 2) / (2 * sigma_cells**2))
    return falls[:, :, 1, :, None] * falls[:, :, 0, None, :]


def heatmap_loss(stacks: list[Tensor], target_BPHW: Tensor, is_inside_BP: Tensor, *, peak_weight: float) -> Tensor:
    """Mean weighted squared error of every stack over the maps whose landmark is inside the crop."""
    weight = (1 + peak_weight * target_BPHW) * is_inside_BP[:, :, None, None]
    total = sum((weight * (maps.float() - target_BPHW) ** 2).sum() for maps in stacks)
    return total / (is_inside_BP.sum().clamp_min(1) * target_BPHW[0, 0].numel())


def training_batch(pool: FacePool, settings: FanTraining, step: int) -> tuple[Tensor, Tensor, int]:
    """Images (B, 3, H, W) in [0, 1] and landmarks (B, 68, 2) px of a step, and the crop's size."""
    is_small = settings.start_sha256 is None and step < settings.small_frac * settings.num_steps
    size_px = INPUT_SIZE_PX // 2 if is_small else INPUT_SIZE_PX
    words = [AUGMENTATION, settings.seed, step]
    rng = np.random.default_rng(
        words if settings.start_sha256 is None else [*words, int(settings.start_sha256[:8], 16)]
    )
    faces = [augmented(pool, int(rng.integers(len(pool))), rng, size_px=size_px) for _ in range(settings.batch_size)]
    images = torch.from_numpy(np.stack([crop for crop, _ in faces])).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(np.stack([points for _, points in faces])).float(), size_px


def _first_fan(settings: FanTraining, start: Path | None) -> FAN:
    """A fresh FAN, or that of `start`, widened if it has half the width."""
    seed = int(np.random.SeedSequence([START, settings.seed]).generate_state(1)[0])
    if start is None:
        torch.manual_seed(seed)
        return FAN(settings.width, settings.num_stacks, pooling=settings.pooling)
    state = safetensors.torch.load_file(start)
    width = 4 * len(state["conv1.weight"])
    if settings.width not in (width, 2 * width):
        raise WeightsError(f"{start} has width {width}, which {settings.width} is neither equal to nor twice of")
    fan = FAN(width, settings.num_stacks, pooling=settings.pooling)
    fan.load_state_dict(state)
    return fan if width == settings.width else widened(fan, seed=seed)


class _Run:
    """What a training carries from step to step."""

    def __init__(self, out: Path, settings: FanTraining, device: torch.device, start: Path | None = None) -> None:
        self.settings, self.device = settings, device
        self.fan = _first_fan(settings, start)
        self.fan.to(device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.fan)
        self.optimiser = torch.optim.AdamW(self.fan.parameters(), lr=settings.max_lr, weight_decay=1e-4, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, settings.max_lr, total_steps=settings.num_steps + 1, pct_start=0.1, final_div_factor=100
        )
        self.checkpoint = Checkpoint(
            out,
            settings.model_dump(),
            fan=self.fan,
            average=self.average,
            optimiser=self.optimiser,
            schedule=self.schedule,
        )
        self.step = self.checkpoint.resume(device)

    def take_step(self, pool: FacePool) -> float:
        """One step; the loss."""
        settings = self.settings
        images, landmarks, size_px = training_batch(pool, settings, self.step)
        images = images.to(self.device, memory_format=torch.channels_last)
        target = gaussian_heatmaps(landmarks, size_px=size_px, sigma_cells=settings.sigma_cells).to(self.device)
        is_inside = ((landmarks >= 0) & (landmarks <= size_px - 1)).all(2).to(self.device)
        self.fan.train()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
            stacks = self.fan(images)
        loss = heatmap_loss(stacks, target, is_inside, peak_weight=settings.peak_weight)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.fan.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        decay = min(settings.ema_decay, (1 + self.step) / (10 + self.step))
        average = self.average.state_dict()
        with torch.no_grad():
            for name, value in self.fan.state_dict().items():
                kept = average[name]
                kept.lerp_(value, 1 - decay) if kept.is_floating_point() else kept.copy_(value)
        return float(loss.detach())


def train_fan(
    out: Path,
    settings: FanTraining,
    *,
    pool_path: Path,
    bank_path: Path,
    start: Path | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 2,
) -> Path:
    """Train a FAN on rendered faces and write its averaged weights to `out` as fp16 safetensors; returns `out`.

    `start`: safetensors of a FAN of the same or half the width to go on from. The pool is rendered into `pool_path`
    unless it is there. A killed training goes on from its `Checkpoint`.
    """
    pool = render_pool(
        pool_path,
        bank_path=bank_path,
        num_faces=settings.num_faces,
        seed=settings.seed,
        size_px=settings.face_size_px,
        num_workers=num_workers,
    )
    settings = settings.model_copy(update={"start_sha256": file_sha256(start) if start else None})
    run = _Run(out, settings, torch.device(device), start)
    with track(f"train FAN-{settings.width}", total=settings.num_steps, unit="steps", num_before=run.step) as step:
        while run.step < settings.num_steps:
            run.take_step(pool)
            step(1)
            run.checkpoint.save_at_times(run.step)
    write_weights(out, run.average.state_dict())
    run.checkpoint.remove()
    return out


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write a FAN's state dict as safetensors, floats in fp16."""
    half = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in state.items()}
    write_bytes_atomically(path, safetensors.torch.save(half))


# ------------------------------------------------------------------------------------------------------------ scores


def interocular_percent(found_BP2: np.ndarray, truth_BP2: np.ndarray) -> np.ndarray:
    """Each point's distance in percent of the face's true distance between the outer eye corners, (B, 68)."""
    unit_B = np.linalg.norm(truth_BP2[:, EYE_CORNERS[0]] - truth_BP2[:, EYE_CORNERS[1]], axis=1)
    return 100 * np.linalg.norm(found_BP2 - truth_BP2, axis=2) / unit_B[:, None]


@torch.inference_mode()
def find_landmarks(fan: FAN, image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The 68 points (68, 2) float64, in px of `image` (RGB uint8 (H, W, 3)), of the face in `box`."""
    affine = crop_affine(box.astype(np.float64), INPUT_SIZE_PX, side_frac=CropConfig().side_per_box_frac)
    crop = cv2.warpAffine(np.asarray(image), affine, (INPUT_SIZE_PX, INPUT_SIZE_PX))
    device = next(fan.parameters()).device
    batch = torch.from_numpy(crop).permute(2, 0, 1)[None].to(device).float() / 255
    points = decode_landmarks(fan(batch.contiguous(memory_format=torch.channels_last))[-1])[0].cpu().numpy()
    return transformed(points.astype(np.float64), cv2.invertAffineTransform(affine))


def evaluate_fan(
    fan: FAN, *, pool_path: Path, bank_path: Path, num_faces: int = 500, seed: int = 0, num_workers: int = 2
) -> dict[str, float]:
    """`score_fan` on faces within 30 degrees of frontal that no training sees; rendered unless they are there."""
    pool = render_pool(
        pool_path,
        bank_path=bank_path,
        num_faces=num_faces,
        seed=seed,
        size_px=FACE_SIZE_PX,
        purpose=TEST_FACES,
        max_angle_deg=30.0,
        num_workers=num_workers,
    )
    return score_fan(fan, pool)


def score_fan(fan: FAN, pool: FacePool) -> dict[str, float]:
    """Error on rendered faces, in percent of the interocular distance, cropped by their true boxes.

    `mean`, `median` and `p95` over faces, `over_8_percent`: share of faces, in percent, whose error is above 8; and the
    mean over the points of jaw, brows, nose, eyes and mouth.
    """
    fan.eval()
    found = []
    with track("score FAN", total=len(pool), unit="faces") as step:
        for i in range(len(pool)):
            found.append(find_landmarks(fan, pool.images[i], pool.boxes[i]))
            step(1)
    percent_BP = interocular_percent(np.stack(found), pool.landmarks)
    errors = percent_BP.mean(1)
    whole = {
        "mean": errors.mean(),
        "median": np.median(errors),
        "p95": np.quantile(errors, 0.95),
        "over_8_percent": 100 * (errors > 8).mean(),
    }
    parts = {name: percent_BP[:, first:end].mean() for name, (first, end) in _PARTS.items()}
    return {name: round(float(value), 3) for name, value in (whole | parts).items()}


_PARTS = {"jaw": (0, 17), "brows": (17, 27), "nose": (27, 36), "eyes": (36, 48), "mouth": (48, 68)}

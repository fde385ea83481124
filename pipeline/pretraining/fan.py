"""Train a FAN on rendered faces, whose 68 landmarks are known; no photograph is used.

The weights are a function of the settings and the starting weights: batch i does not depend on where a training was
killed and resumed.
"""

# B faces, P 68 landmarks, H W rows and columns
from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from models.fan import FAN, widened
from models.maps import INPUT_SIZE_PX
from pipeline.config import Fraction, PositiveFloat, PositiveInt, Settings
from pipeline.errors import WeightsError
from pipeline.pretraining.augmentation import augmented
from pipeline.pretraining.face_pool import AUGMENTATION, FACE_SIZE_PX, START, FacePool, render_pool
from pipeline.runtime.atomic import file_sha256, write_safetensors
from pipeline.runtime.checkpoint import Checkpoint, checkpoint_beside
from pipeline.runtime.progress import track


class FanTraining(Settings):
    """Everything that decides the trained weights."""

    width: PositiveInt
    num_stacks: Annotated[int, Field(ge=2)] = 2
    pooling: Literal["avg", "max"] = "avg"
    num_steps: PositiveInt
    batch_size: PositiveInt = 8
    small_frac: Fraction = 0.7
    """First share of the steps of a training from scratch, on crops of half the size, where a step costs a quarter."""
    max_lr: PositiveFloat = 3e-3
    sigma_cells: PositiveFloat = 1.2
    """Standard deviation of the target's Gaussian, in cells of the heatmap."""
    peak_weight: Annotated[float, Field(ge=0)] = 20.0
    """Squared errors are weighted by 1 + peak_weight * target, since nearly all cells are background."""
    ema_decay: Fraction = 0.995
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of the forward pass; the weights are fp32."""
    seed: Annotated[int, Field(ge=0)] = 0
    start_sha256: str | None = None
    """SHA-256 of the initial weights, of this or half this width; set by `train_fan`."""
    num_faces: PositiveInt = 5000
    """Number of rendered faces in the pool."""
    face_size_px: PositiveInt = FACE_SIZE_PX


def gaussian_heatmaps(landmarks_BP2: Tensor, *, size_px: int, sigma_cells: float, stride: int = 4) -> Tensor:
    """Return Gaussians (B, P, size_px / stride, size_px / stride), 1 at the landmarks (B, P, 2) in px of the input."""
    cells_BP2 = (landmarks_BP2 + 0.5) / stride - 0.5
    grid = torch.arange(size_px // stride, dtype=torch.float32)
    falls = torch.exp(-((grid - cells_BP2[..., None]) ** 2) / (2 * sigma_cells**2))
    return falls[:, :, 1, :, None] * falls[:, :, 0, None, :]


def heatmap_loss(stacks: list[Tensor], target_BPHW: Tensor, is_inside_BP: Tensor, *, peak_weight: float) -> Tensor:
    """Return the weighted squared error, averaged over the maps whose landmark is inside the crop, summed over stacks.

    stacks: heatmaps (B, P, H, W) of each stack. is_inside_BP: bool. peak_weight: see `FanTraining`.
    """
    weight = (1 + peak_weight * target_BPHW) * is_inside_BP[:, :, None, None]
    total = sum((weight * (maps.float() - target_BPHW) ** 2).sum() for maps in stacks)
    return total / (is_inside_BP.sum().clamp_min(1) * target_BPHW[0, 0].numel())


def training_batch(pool: FacePool, settings: FanTraining, step: int) -> tuple[Tensor, Tensor, int]:
    """Return images (B, 3, H, W) in [0, 1] and landmarks (B, 68, 2) px of a step, and the side of the crops in px."""
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
    """A newly initialised FAN, or that of `start`, widened if it has half the width."""
    seed = int(np.random.SeedSequence([START, settings.seed]).generate_state(1)[0])
    if start is None:
        torch.manual_seed(seed)
        return FAN(settings.width, settings.num_stacks, pooling=settings.pooling)
    state = load_file(start)
    width = 4 * len(state["conv1.weight"])
    if settings.width not in (width, 2 * width):
        raise WeightsError(f"{start} has width {width}; expected {settings.width} or half of it")
    fan = FAN(width, settings.num_stacks, pooling=settings.pooling)
    fan.load_state_dict(state)
    return fan if width == settings.width else widened(fan, seed=seed)


class _Run:
    """The state of a training: network, its moving average, optimiser, schedule and step."""

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
            checkpoint_beside(out),
            settings.model_dump(),
            fan=self.fan,
            average=self.average,
            optimiser=self.optimiser,
            schedule=self.schedule,
        )
        self.step = self.checkpoint.resume(device)

    def take_step(self, pool: FacePool) -> float:
        """Take one step; return its loss."""
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
    """Render a pool of faces into `pool_path`, unless it exists, and `train_on_pool`; return `out`."""
    pool = render_pool(
        pool_path,
        bank_path=bank_path,
        num_faces=settings.num_faces,
        seed=settings.seed,
        size_px=settings.face_size_px,
        num_workers=num_workers,
    )
    return train_on_pool(out, settings, pool, start=start, device=device)


def train_on_pool(
    out: Path,
    settings: FanTraining,
    pool: FacePool,
    *,
    start: Path | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """Train a FAN on a pool and write its averaged weights to `out` as fp16 safetensors; return `out`.

    start: safetensors of a FAN of the same or half the width, as initial weights; `WeightsError` for another width. A
    killed training resumes from its `Checkpoint`.
    """
    settings = settings.model_copy(update={"start_sha256": file_sha256(start) if start else None})
    run = _Run(out, settings, torch.device(device), start)
    with track(
        f"train FAN-{settings.width}", total=settings.num_steps, unit="steps", num_before=run.step
    ) as on_progress:
        while run.step < settings.num_steps:
            run.take_step(pool)
            on_progress(1)
            run.checkpoint.save_if_due(run.step)
    write_safetensors(out, run.average.state_dict(), half=True)
    run.checkpoint.remove()
    return out

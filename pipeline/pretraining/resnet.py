"""Train the early features of ResNet-18 to classify rendered faces, where ImageNet weights are not available.

Each face of a pool is a class, seen in a new random augmentation at each step (exemplar training: Dosovitskiy et al.,
NeurIPS 2014). Landmarks, expressions and action units are not used as targets. The layers after `layer1` are needed in
training only and are not written.
"""

# B images, H W rows and columns
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import timm
import torch
from pydantic import Field
from torch import Tensor, nn

from models.resnet import MEAN, STD
from pipeline.config import PositiveFloat, PositiveInt, Settings
from pipeline.pretraining.augmentation import augmented
from pipeline.pretraining.face_pool import AUGMENTATION, FacePool
from pipeline.runtime.atomic import write_safetensors
from pipeline.runtime.checkpoint import Checkpoint, checkpoint_beside
from pipeline.runtime.progress import track

KEPT = ("conv1.", "bn1.", "layer1.")
"""Prefixes of the tensors of timm's resnet18 that are written."""

_NEW_DRAWS = 2**31
"""First step of `exemplar_accuracy`, beyond the steps of any training."""


class ResNetTraining(Settings):
    """Everything that decides the trained weights, given the pool."""

    num_steps: PositiveInt = 1500
    batch_size: PositiveInt = 32
    size_px: PositiveInt = 128
    """Side of the crops: half of that in feature extraction, at a quarter of the cost."""
    max_lr: PositiveFloat = 2e-3
    seed: Annotated[int, Field(ge=0)] = 0


def exemplar_batch(pool: FacePool, settings: ResNetTraining, step: int) -> tuple[Tensor, Tensor]:
    """Return normalised images (B, 3, H, W) of a step, and the number (B,) of each one's face in the pool."""
    rng = np.random.default_rng([AUGMENTATION, settings.seed, step])
    faces = rng.integers(len(pool), size=settings.batch_size)
    crops = np.stack([augmented(pool, int(face), rng, size_px=settings.size_px)[0] for face in faces])
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last), torch.from_numpy(faces)


def train_resnet(out: Path, settings: ResNetTraining, pool: FacePool, *, device: torch.device | str = "cpu") -> float:
    """Train on a pool, write the layers `KEPT` to `out` as fp16 safetensors and return `exemplar_accuracy`.

    A killed training resumes from its `Checkpoint`.
    """
    device = torch.device(device)
    torch.manual_seed(settings.seed)
    net = timm.create_model("resnet18", num_classes=len(pool)).to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.max_lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.max_lr, total_steps=settings.num_steps + 1)
    checkpoint = Checkpoint(
        checkpoint_beside(out),
        settings.model_dump() | {"num_faces": len(pool)},
        net=net,
        optimiser=optimiser,
        schedule=schedule,
    )
    first = checkpoint.resume(device)
    net.train()
    with track("train ResNet-18", total=settings.num_steps, unit="steps", num_before=first) as on_progress:
        for i in range(first, settings.num_steps):
            images, faces = exemplar_batch(pool, settings, i)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = net(images.to(device))
            loss = nn.functional.cross_entropy(logits.float(), faces.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            on_progress(1)
            checkpoint.save_if_due(i + 1)
    kept = {name: values for name, values in net.state_dict().items() if name.startswith(KEPT)}
    write_safetensors(out, kept, half=True)
    checkpoint.remove()
    return exemplar_accuracy(net, pool, settings)


@torch.inference_mode()
def exemplar_accuracy(net: nn.Module, pool: FacePool, settings: ResNetTraining, *, num_batches: int = 32) -> float:
    """Return the accuracy (0..1) of classifying the pool's faces in augmentations that no training has seen."""
    net.eval()
    device = next(net.parameters()).device
    right = []
    for i in range(num_batches):
        images, faces = exemplar_batch(pool, settings, _NEW_DRAWS + i)
        right.append((net(images.to(device)).argmax(1).cpu() == faces).float())
    return float(torch.cat(right).mean())

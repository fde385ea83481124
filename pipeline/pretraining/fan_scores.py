"""Landmark errors of a FAN on rendered faces that no training has seen."""

# B faces
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from models.fan import FAN, decode_landmarks
from models.maps import INPUT_SIZE_PX
from pipeline.config import CropConfig
from pipeline.faces.geometry import crop_from_frame, transform_points
from pipeline.pretraining.face_pool import FACE_SIZE_PX, TEST_FACES, FacePool, render_pool
from pipeline.runtime.progress import track

EYE_CORNERS = (36, 45)
"""Outer eye corners, iBUG 37 and 46, counted from 0: their distance is the unit of the error."""

_PARTS = {"jaw": (0, 17), "brows": (17, 27), "nose": (27, 36), "eyes": (36, 48), "mouth": (48, 68)}


def interocular_percent(found_BP2: np.ndarray, truth_BP2: np.ndarray) -> np.ndarray:
    """Return the error of each point in percent of the true distance of the outer eye corners, (B, 68).

    found_BP2, truth_BP2: points x, y in px, (B, 68, 2).
    """
    unit_B = np.linalg.norm(truth_BP2[:, EYE_CORNERS[0]] - truth_BP2[:, EYE_CORNERS[1]], axis=1)
    percent_BP: np.ndarray = 100 * np.linalg.norm(found_BP2 - truth_BP2, axis=2) / unit_B[:, None]
    return percent_BP


@torch.inference_mode()
def find_landmarks(fan: FAN, image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the landmarks, float64 (68, 2) in px of `image` (RGB uint8 (H, W, 3)), of the face in `box` (xyxy px)."""
    affine = crop_from_frame(box.astype(np.float64), INPUT_SIZE_PX, side_frac=CropConfig().side_per_box_frac)
    crop = cv2.warpAffine(np.asarray(image), affine, (INPUT_SIZE_PX, INPUT_SIZE_PX))
    device = next(fan.parameters()).device
    batch = torch.from_numpy(crop).permute(2, 0, 1)[None].to(device).float() / 255
    points = decode_landmarks(fan(batch.contiguous(memory_format=torch.channels_last))[-1])[0].cpu().numpy()
    return transform_points(points.astype(np.float64), cv2.invertAffineTransform(affine))


def evaluate_fan(
    fan: FAN, *, pool_path: Path, bank_path: Path, num_faces: int = 500, seed: int = 0, num_workers: int = 2
) -> dict[str, float]:
    """Return `score_fan` on unseen faces within 30 degrees of frontal, rendered into `pool_path` unless they exist.

    Raises `DataError` as `render_pool` does.
    """
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
    """Return landmark errors on a pool, cropped by the true boxes, in percent of the distance of the outer eye corners.

    `mean`, `median` and `p95` (95th percentile) over faces; `over_8_percent`: percentage of faces whose error is above
    8; `jaw`, `brows`, `nose`, `eyes` and `mouth`: averages over the points of that part.
    """
    fan.eval()
    found = []
    with track("score FAN", total=len(pool), unit="faces") as on_progress:
        for i in range(len(pool)):
            found.append(find_landmarks(fan, pool.images[i], pool.boxes[i]))
            on_progress(1)
    percent_BP = interocular_percent(np.stack(found), pool.landmarks)
    errors = percent_BP.mean(1)
    overall = {
        "mean": errors.mean(),
        "median": np.median(errors),
        "p95": np.quantile(errors, 0.95),
        "over_8_percent": 100 * (errors > 8).mean(),
    }
    parts = {name: percent_BP[:, first:end].mean() for name, (first, end) in _PARTS.items()}
    return {name: round(float(value), 3) for name, value in (overall | parts).items()}

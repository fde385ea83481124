"""Affine maps between a frame and its crops, named by their direction: `RESULT_from_SOURCE`.

Coordinates: pixel centres at integers, x to the right, y down.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from pipeline.config import CropConfig
from pipeline.faces.views import crop_side_px


def frame_from_crop(box_xyxy: np.ndarray, settings: CropConfig) -> np.ndarray:
    """Return the affine (2, 3) float64 that maps px of the stored crop to px of the frame.

    The FAN's input of `size_px` shows a square about the centre of the box (px of the frame), whose side is
    (width + height) * side_per_box_frac. The stored crop has the same centre and scale and `context_frac` times the
    side (paper 4.1).
    """
    x1, y1, x2, y2 = np.asarray(box_xyxy, np.float64)
    frame_px_per_crop_px = (x2 - x1 + y2 - y1) * settings.side_per_box_frac / settings.size_px
    corner = np.array([x1 + x2, y1 + y2]) / 2 - (crop_side_px(settings) - 1) / 2 * frame_px_per_crop_px
    return np.column_stack([np.eye(2) * frame_px_per_crop_px, corner])


def crop_from_frame(
    box_xyxy: np.ndarray,
    size_px: int,
    *,
    side_frac: float,
    rotation_deg: float = 0.0,
    scale: float = 1.0,
    shift_frac: tuple[float, float] = (0.0, 0.0),
    is_flipped: bool = False,
) -> np.ndarray:
    """Return the affine (2, 3) float64 that maps px of the frame to px of a square crop of side `size_px`.

    The crop shows a square about the centre of the box (px of the frame) whose side is (width + height) * side_frac /
    scale. rotation_deg: counter-clockwise on the screen. shift_frac: shift of the centre in x and y, in sides.
    is_flipped: whether the crop is mirrored left to right.
    """
    width, height = box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1]
    side = (width + height) * side_frac / scale
    centre = np.array(
        [
            (box_xyxy[0] + box_xyxy[2]) / 2 + shift_frac[0] * side,
            (box_xyxy[1] + box_xyxy[3]) / 2 + shift_frac[1] * side,
        ]
    )
    cos, sin = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    linear = np.array([[cos, sin], [-sin, cos]]) * size_px / side
    if is_flipped:
        linear[0] *= -1
    return np.concatenate((linear, ((size_px - 1) / 2 - linear @ centre)[:, None]), 1)


def transform_points(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return points x, y (..., 2) mapped by an affine (2, 3)."""
    mapped: np.ndarray = points @ affine[:, :2].T + affine[:, 2]
    return mapped


def cut_crop(image: np.ndarray, affine: np.ndarray, settings: CropConfig) -> np.ndarray:
    """Return the stored crop (S, S, 3) of an image (H, W, 3), both RGB uint8: bilinear, zero outside of the image.

    affine: of `frame_from_crop`.
    """
    side = crop_side_px(settings)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, affine, (side, side), flags=flags, borderValue=(0, 0, 0))

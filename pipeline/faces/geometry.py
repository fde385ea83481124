"""Cut crops from frames.

Coordinates: pixel centres at integers, x to the right, y down.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.config import CropConfig
from pipeline.faces.views import crop_side_px


def crop_affine(box_xyxy: np.ndarray, settings: CropConfig) -> np.ndarray:
    """Return the affine (2, 3), float64, from px of the stored crop to px of the frame (paper 4.1).

    The FAN's input of `size_px` is a square of side (width + height) * side_per_box_frac about the box's centre. The
    stored crop has the same centre and scale, and `context_frac` times the side.
    """
    x1, y1, x2, y2 = np.asarray(box_xyxy, np.float64)
    frame_px_per_crop_px = (x2 - x1 + y2 - y1) * settings.side_per_box_frac / settings.size_px
    corner = np.array([x1 + x2, y1 + y2]) / 2 - (crop_side_px(settings) - 1) / 2 * frame_px_per_crop_px
    return np.column_stack([np.eye(2) * frame_px_per_crop_px, corner])


def cut_crop(image: np.ndarray, affine: np.ndarray, settings: CropConfig) -> np.ndarray:
    """Cut the stored crop (S, S, 3) from an image (H, W, 3), both RGB uint8: bilinear, zero outside the image."""
    side = crop_side_px(settings)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, affine, (side, side), flags=flags, borderValue=(0, 0, 0))

"""Render views of a crop: clean, flipped or augmented, as a function of seed, frame_id and the view's number.

A view flips and shifts the face, rotates and scales it about the view's centre, and resamples the stored crop once. The
clean view is a copy of the stored crop's centre. Coordinates: px of the stored crop or of the view, which have the same
scale; pixel centres at integers, x to the right, y down.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import cv2
import numpy as np

from pipeline.config import CropConfig, ViewConfig
from pipeline.errors import ConfigError

CLEAN_VIEW = 0
FLIPPED_VIEW = 1
FIRST_AUGMENTED_VIEW = 2

_NUM_DRAWS = 5
_UNIFORM_BITS = 53


@dataclass(frozen=True)
class ViewParams:
    """Parameters of a view, applied in this order: flip left-right, shift (px), rotate clockwise, scale."""

    rotation_deg: float = 0.0
    scale: float = 1.0
    shift_x_px: float = 0.0
    shift_y_px: float = 0.0
    is_flipped: bool = False

    def as_row(self) -> np.ndarray:
        """Return the five numbers as float64, in the order of the fields."""
        return np.array(astuple(self), np.float64)


def view_params(frame_id: str, view: int, settings: ViewConfig) -> ViewParams:
    """Return the parameters of a view (paper 4.1), equal on every platform and in every process.

    View 0 is clean, 1 is clean and flipped, 2 and up are uniform draws within the settings.
    """
    if view == CLEAN_VIEW:
        return ViewParams()
    if view == FLIPPED_VIEW:
        return ViewParams(is_flipped=True)
    u = _uniforms(f"{settings.seed}/{view}/{frame_id}")
    return ViewParams(
        rotation_deg=(2 * u[0] - 1) * settings.max_rotation_deg,
        scale=settings.min_scale + u[1] * (settings.max_scale - settings.min_scale),
        shift_x_px=(2 * u[2] - 1) * settings.max_shift_px,
        shift_y_px=(2 * u[3] - 1) * settings.max_shift_px,
        is_flipped=u[4] < settings.flip_probability,
    )


def view_matrix(params: ViewParams, *, crop_px: int, view_px: int) -> np.ndarray:
    """Return the affine (2, 3), float64, from px of the stored crop (side `crop_px`) to px of the view (`view_px`)."""
    angle = math.radians(params.rotation_deg)
    cos, sin = params.scale * math.cos(angle), params.scale * math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    flip = np.diag([-1.0 if params.is_flipped else 1.0, 1.0])
    crop_centre, view_centre = (crop_px - 1) / 2, (view_px - 1) / 2
    shift = np.array([params.shift_x_px, params.shift_y_px])
    offset = turn @ (shift - flip @ [crop_centre, crop_centre]) + view_centre
    return np.column_stack([turn @ flip, offset])


def render_view(crop: np.ndarray, params: ViewParams, *, view_px: int) -> np.ndarray:
    """Render a view of a stored crop, RGB uint8 (S, S, 3) to (view_px, view_px, 3): bilinear, zero outside."""
    matrix = view_matrix(params, crop_px=crop.shape[0], view_px=view_px)
    return cv2.warpAffine(crop, matrix, (view_px, view_px), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))


def render_views(
    crops: np.ndarray, frame_ids: Sequence[str], *, view: int, settings: ViewConfig, view_px: int
) -> np.ndarray:
    """Render one view of stored crops (n, S, S, 3) of these frames: RGB uint8 (n, view_px, view_px, 3)."""
    params = (view_params(frame_id, view, settings) for frame_id in frame_ids)
    return np.stack([render_view(crop, each, view_px=view_px) for crop, each in zip(crops, params, strict=True)])


def crop_side_px(crop: CropConfig) -> int:
    """Return the side of the stored crop, at the scale of the FAN's input."""
    return round(crop.size_px * crop.context_frac)


def check_context(crop: CropConfig, views: ViewConfig) -> None:
    """Raise `ConfigError` if the strongest view would sample outside the stored crop.

    After undoing scale s and rotation t, a view's corner is at most (size - 1) / 2 (cos t + sin t) / s plus the shift
    from the crop's centre, along each axis.
    """
    angle = math.radians(views.max_rotation_deg)
    reach_px = (crop.size_px - 1) / 2 * (math.cos(angle) + math.sin(angle)) / views.min_scale + views.max_shift_px
    if reach_px > (crop_side_px(crop) - 1) / 2:
        needed = (2 * reach_px + 1) / crop.size_px
        raise ConfigError(
            f"crop.context_frac is {crop.context_frac:g}, but these views reach {reach_px:.1f} px from the crop's "
            f"centre; set it to at least {math.ceil(needed * 100) / 100:g}, or reduce the views' ranges"
        )


def _uniforms(name: str) -> list[float]:
    """Return five numbers in [0, 1) from a hash of `name`."""
    digest = hashlib.blake2b(name.encode(), digest_size=8 * _NUM_DRAWS, person=b"view").digest()
    words = (int.from_bytes(digest[8 * i : 8 * i + 8], "big") for i in range(_NUM_DRAWS))
    return [(word >> (64 - _UNIFORM_BITS)) / 2**_UNIFORM_BITS for word in words]

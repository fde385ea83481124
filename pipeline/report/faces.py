"""Faces for reports: the crops that a cache was computed from, and images as text for a page."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline.cache.crops import CropReader
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.catalog import Catalog
from pipeline.datasets.images import read_frames
from pipeline.errors import StoreError
from pipeline.faces.views import ViewParams, render_view
from pipeline.tables import VALUE_COLUMNS

logger = logging.getLogger("fantrans")

_JPEG_QUALITY = 80
_BOX_RGB = (255, 190, 0)


def read_faces(catalog: Catalog, dataset: str, cache: CacheReader, frame_ids: Sequence[str]) -> list[np.ndarray]:
    """Return the clean views of frames, RGB uint8 (S, S, 3)."""
    crops = CropReader(catalog.crops_folder(dataset) / cache.manifest["provenance"]["crops"]["folder"])
    rows = crops.index.set_index("frame_id")["row"].loc[list(frame_ids)].to_numpy()
    side = cache.document["crop"]["size_px"]
    return [render_view(crop, ViewParams(), view_px=side) for crop in crops.read_crops(rows)]


def data_uri(image: np.ndarray, *, width_px: int) -> str:
    """Return an image, RGB uint8 (H, W, 3), as a JPEG in a data URI, at most `width_px` wide."""
    height, width = image.shape[:2]
    if width > width_px:
        size = (width_px, round(height * width_px / width))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def file_uri(path: Path, *, width_px: int) -> str | None:
    """Return an image file as `data_uri` does; None if it does not exist or is not an image."""
    pixels = np.frombuffer(path.read_bytes(), np.uint8) if path.is_file() else np.empty(0, np.uint8)
    image = cv2.imdecode(pixels, cv2.IMREAD_COLOR) if len(pixels) else None
    return None if image is None else data_uri(image[:, :, ::-1], width_px=width_px)


def frame_thumbnails(root: Path, frames: pd.DataFrame, boxes: pd.DataFrame | None, *, width_px: int) -> dict[str, str]:
    """Return data URIs of whole frames by frame_id, with the subject's box drawn; without those that cannot be read.

    frames: frame_id, source_file and source_frame. boxes: `BOX_COLUMNS`.
    """
    names = frames["frame_id"].tolist()
    known = {} if boxes is None else boxes.set_index("frame_id")[list(VALUE_COLUMNS[:4])].T.to_dict("list")
    found = {}
    for position, image in read_frames(root, frames):
        if image is not None:
            name = names[position]
            found[name] = data_uri(_with_box(image, known.get(name)), width_px=width_px)
    return found


def _with_box(image: np.ndarray, box: Sequence[float] | None) -> np.ndarray:
    """Return a copy of an image, RGB uint8 (H, W, 3), with a box (x1, y1, x2, y2) drawn on it, if there is one."""
    if box is None or not np.isfinite(box).all():
        return image
    x1, y1, x2, y2 = (round(value) for value in box)
    drawn: np.ndarray = cv2.rectangle(image.copy(), (x1, y1), (x2, y2), _BOX_RGB, max(2, image.shape[1] // 100))
    return drawn


def thumbnails(
    catalog: Catalog, dataset: str, fingerprint: str, frame_ids: Sequence[str], *, width_px: int
) -> dict[str, str]:
    """Return data URIs of faces by frame_id, without those whose crops or cache do not exist any more."""
    try:
        cache = open_cache(catalog.caches_folder(dataset) / fingerprint)
        crops = CropReader(catalog.crops_folder(dataset) / cache.manifest["provenance"]["crops"]["folder"])
        known = crops.index.set_index("frame_id")["row"]
        found = [frame_id for frame_id in dict.fromkeys(frame_ids) if frame_id in known.index]
        images = read_faces(catalog, dataset, cache, found) if found else []
    except (StoreError, KeyError) as error:  # a cache that was imported has no crops
        logger.warning("faces of %s are not shown: %s", dataset, error)
        return {}
    return {name: data_uri(image, width_px=width_px) for name, image in zip(found, images, strict=True)}

"""Spread of the boxes of a data set and what is known of its tracks, as the page of a cache shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.config import DetectorConfig
from pipeline.refresh.boxes import face_notes
from pipeline.report.rendering import Cell, Rows, count_cell, number_cell
from pipeline.tables import VALUE_COLUMNS, Status

MAX_SEQUENCES = 200
"""Greatest number of sequences in their table."""

_NUM_BINS = 40
_NUM_PLACES = 20
_MEASURES = {
    "side_px": ("side of the box", "px"),
    "roll_deg": ("turn in the image (roll)", "degrees, positive: clockwise"),
    "side_turn": ("turn to the side", "eye distances from the middle of the eyes to the nose, 0: frontal"),
    "score": ("score of the face", "0 to 1"),
}


def box_measures(boxes: pd.DataFrame) -> pd.DataFrame:
    """Return size, place, turn and score of each detected box; frames without one and interpolated ones are left out.

    side_px: square root of the area. x_percent, y_percent: centre in the frame. roll_deg: slope of the line from eye to
    eye. side_turn: how far the nose is from the middle of the eyes along that line, in eye distances.
    """
    found = boxes[boxes["score"].notna()]
    x1, y1, x2, y2 = (found[name].to_numpy(np.float64) for name in VALUE_COLUMNS[:4])
    points = found[list(VALUE_COLUMNS[5:])].to_numpy(np.float64).reshape(-1, 5, 2)
    eyes = points[:, 1] - points[:, 0]
    nose = points[:, 2] - (points[:, 0] + points[:, 1]) / 2
    width, height = (found[name].to_numpy(np.float64).clip(1) for name in ("width_px", "height_px"))
    return pd.DataFrame(
        {
            "frame_id": found["frame_id"].to_numpy(),
            "side_px": np.sqrt(np.maximum((x2 - x1) * (y2 - y1), 0)),
            "x_percent": 50 * (x1 + x2 + 1) / width,
            "y_percent": 50 * (y1 + y2 + 1) / height,
            "roll_deg": np.degrees(np.arctan2(eyes[:, 1], eyes[:, 0])),
            "side_turn": (nose * eyes).sum(1) / np.maximum((eyes**2).sum(1), 1e-6),
            "score": found["score"].to_numpy(np.float64),
        }
    )


def spread_table(measures: pd.DataFrame) -> Rows:
    """Return one row per measure: least, 5 %, median, 95 %, greatest, and the frame with the greatest."""
    rows, names = [], measures["frame_id"].tolist()
    for name, (title, unit) in _MEASURES.items():
        values = measures[name]
        ends = values.quantile([0, 0.05, 0.5, 0.95, 1])
        least, greatest = (str(names[place]) for place in (values.argmin(), values.argmax()))
        cells = [number_cell(value, ".3f" if name in ("side_turn", "score") else ".1f") for value in ends]
        rows.append([Cell(f"{title} ({unit.split(',', maxsplit=1)[0]})"), *cells, Cell(least), Cell(greatest)])
    return ["measure", "least", "5 %", "median", "95 %", "greatest", "frame with the least", "with the greatest"], rows


def spread_charts(measures: pd.DataFrame, detector: Mapping[str, Any]) -> dict[str, Any]:
    """Return histograms of the measures, with the limits of plausible boxes, and of the places of box centres.

    detector: settings in the cache's fingerprint document.
    """
    limits = {"side_px": [detector["min_side_px"]], "roll_deg": [-detector["max_roll_deg"], detector["max_roll_deg"]]}
    limits["score"] = [detector["score_threshold"]]
    found: dict[str, Any] = {"histograms": {}, "places": {}}
    for name, (title, unit) in _MEASURES.items():
        counts, edges = np.histogram(measures[name], _NUM_BINS)
        found["histograms"][title] = {
            "unit": unit,
            "starts": [float(f"{edge:.5g}") for edge in edges[:-1]],
            "width": float(f"{edges[1] - edges[0]:.5g}"),
            "counts": counts.tolist(),
            "limits": limits.get(name, []),
        }
    bins = np.linspace(0, 100, _NUM_PLACES + 1)
    places, _, _ = np.histogram2d(measures["y_percent"], measures["x_percent"], [bins, bins])
    centres = ((bins[1:] + bins[:-1]) / 2).tolist()
    found["places"] = {"x": centres, "y": centres, "counts": places.astype(int).tolist()}
    return found


def track_notes(boxes: pd.DataFrame, detector: Mapping[str, Any]) -> list[str]:
    """Return what a refresh counts of the choice of faces: several faces, flaws, switches, shrunk frames."""
    return face_notes(boxes, DetectorConfig(max_side_px=detector["max_side_px"]))


def sequence_table(boxes: pd.DataFrame) -> Rows:
    """Return the sequences with several faces, a switch, a flaw, a filled gap or a missed face, the worst first."""
    sequence = boxes["frame_id"].str.rpartition("/")[0].rename("sequence")
    counts = pd.DataFrame(
        {
            "frames": 1,
            "several faces": boxes["num_faces"] > 1,
            "flaws": boxes["flaw"] != "",
            "filled": boxes["status"] == Status.INTERPOLATED,
            "no face": boxes["status"] == Status.NO_FACE,
        }
    )
    table = counts.groupby(sequence).sum().astype(int)
    num_tracks = boxes[boxes["track"] >= 0].groupby(sequence)["track"].nunique()
    table.insert(1, "switches", (num_tracks - 1).reindex(table.index, fill_value=0).clip(0))
    notable = table[(table.drop(columns="frames") > 0).any(axis=1)]
    notable = notable.sort_values(["switches", "flaws", "no face", "several faces", "filled"], ascending=False)
    rows = [
        [Cell(str(name)), *map(count_cell, row)] for name, row in zip(notable.index, notable.to_numpy(), strict=True)
    ]
    return ["sequence", *table.columns], rows

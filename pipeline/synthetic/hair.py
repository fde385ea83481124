"""Hair: a shell over the scalp and a hull that hangs from it, drawn where a density map is positive."""

# V vertices, S shell vertices, T texture's side in px
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.synthetic import raster
from pipeline.synthetic.bank import Bank, texture_angles
from pipeline.synthetic.textures import linear, noise, noise_tile, strand_tile, texture_grid

HAIR_COLOURS = np.array(
    [
        (28, 22, 20),
        (46, 34, 27),
        (70, 48, 34),
        (96, 66, 42),
        (134, 96, 60),
        (178, 140, 92),
        (214, 184, 136),
        (122, 58, 32),
        (150, 148, 146),
        (205, 203, 200),
    ]
)
HULL_ROWS, HULL_HEIGHTS = (0.92, 1.0), (-0.14, 0.36)


@dataclass(frozen=True, eq=False)
class Hair:
    """Shell over the scalp and, for long hair, the hull that hangs from it.

    thickness (S,) m over vertices `shell`; shell_faces and hull_faces index [shell vertices; bank vertices].
    attributes (S + V, 6): u, v, across, along, occlusion, density to add. density (T, T): hair where positive. colour
    (2, 3) linear. look: shine, contrast, raggedness.
    """

    shell: np.ndarray
    thickness: np.ndarray
    shell_faces: np.ndarray
    hull_faces: np.ndarray
    attributes: np.ndarray
    density: np.ndarray
    strands: np.ndarray
    colour: np.ndarray
    look: np.ndarray


def sample_hair_colour(tone: float, age: float, rng: np.random.Generator) -> np.ndarray:
    """Sample the colours of dark and light strands, linear (2, 3)."""
    if rng.random() < max(0.03, (age - 0.72) * 2.2):
        base = linear(HAIR_COLOURS[rng.integers(8, 10)])
    else:
        base = linear(HAIR_COLOURS[min(7, int(rng.beta(1.0, 1.2 + 5 * tone) * 8))])
    base = base * rng.uniform(0.75, 1.25) * rng.normal(1, 0.04, 3)
    return np.stack([base * 0.6, base * 1.25]).astype(np.float32)


@lru_cache(maxsize=2)
def _scalp(bank: Bank) -> tuple[np.ndarray, np.ndarray]:
    """Return the vertices that hair may cover, and their triangles as indices into those vertices."""
    turn, height = texture_angles(bank.uv)
    limit = np.interp(np.abs(turn), [0, 40, 62, 75, 100, 180], [9, 9, 4, -28, -42, -48])
    is_ear = (np.abs(bank.rest[:, 0]) > 0.071) & (np.abs(bank.rest[:, 1]) < 0.045) & (np.abs(bank.rest[:, 2]) < 0.05)
    is_scalp = bank.is_head & (height > limit) & ~is_ear
    faces = bank.faces[bank.material == raster.SKIN]
    faces = faces[is_scalp[faces].all(1)]
    used = np.unique(faces)
    new = np.full(len(bank.rest), -1, np.int32)
    new[used] = np.arange(len(used))
    return used, new[faces]


def sample_hair(
    bank: Bank,
    colour: np.ndarray,
    rng: np.random.Generator,
    size: int,
    *,
    gender: float,
    age: float,
    tone: float,
    is_face_clear: bool,
) -> tuple[Hair, np.ndarray]:
    """Sample hair, and the opacity (T, T) of its colour on the scalp's texture."""
    style = _style(gender, age, tone, rng)
    if is_face_clear:
        style |= {"front": max(style["front"], 33.0), "open": max(style["open"], 46.0), "fall": 0.08}
    turn, height = texture_grid(size)
    line = _hairline(np.abs(turn), style, rng)
    ragged = style["ragged"] * (1.6 * noise(size, size * 0.012, rng) + 1.2 * noise(size, size * 0.004, rng))
    lean = style["part"] * 0.04 * turn * (np.abs(turn) < 70)
    density = (height - line + ragged + lean).astype(np.float32)
    scalp_mask = np.clip((density + 2.0) / 5.0, 0, 1) * style["scalp_cover"]
    scalp_mask[int(0.85 * size) :] = 0
    used, faces = _scalp(bank)
    place = np.clip((bank.uv[used] * size).astype(int), 0, size - 1)
    inside = density[place[:, 1], place[:, 0]]
    top = np.clip((texture_angles(bank.uv[used])[1] - 15) / 60, 0, 1)
    lumps = noise_tile(128, 5.0, int(rng.integers(6)))[
        (bank.uv[used, 1] * 127).astype(int), (bank.uv[used, 0] * 127).astype(int)
    ]
    rise = 0.0012 + style["volume"] * np.clip((inside + 1) / 20, 0, 1) ** 0.8 * (0.55 + 0.45 * top) * (1 + 0.22 * lumps)
    u, v = bank.uv.T
    across, along = (
        (u * style["strands"], v * 1.2)
        if not style["part"]
        else ((v + 0.25 * np.sign(style["part"]) * u) * style["strands"] * 0.6, u * 1.5)
    )
    attributes = np.stack([u, v, across, along, np.maximum(bank.occlusion, 0.75), np.zeros_like(u)], 1)
    shell_attributes = attributes[used]
    shell_attributes[:, 5] = 0.8 * np.clip((rise - 0.004) / 0.012, 0, 1)  # no gap under thick hair
    hull = np.zeros((0, 3), np.int32)
    if style["length"] > 0:
        corners = bank.rest[bank.hair_faces]
        hull = bank.hair_faces[(corners[..., 1].min(1) < style["length"])]
        ids = np.unique(bank.hair_faces)
        x, y, z = bank.rest[ids].T
        # the texture's last rows, under the neck, hold the hull: a row is a height
        rows = slice(int(HULL_ROWS[0] * size), size)
        level = np.linspace(*HULL_HEIGHTS, size - rows.start)[:, None]
        parting = (
            style["open"] * np.clip((level + 0.1) / style["fall"], 0, 1) + np.clip(level, 0, 0.2) * style["spread"]
        )
        density[rows] = (
            np.minimum(np.abs(turn[rows]) - parting, (style["length"] - level) * 160) + ragged[: size - rows.start]
        )
        attributes[ids, 1] = np.interp(y, HULL_HEIGHTS, [HULL_ROWS[0] + 1.5 / size, HULL_ROWS[1] - 1.5 / size])
        attributes[ids, 2] = np.arctan2(x, -z) * style["strands"] / 2.6
        attributes[ids, 3] = y * 3.0
        attributes[ids, 4] = np.clip(0.95 - 0.9 * y, 0.5, 1)
    if not style["volume"]:
        faces = faces[:0]
    return Hair(
        shell=used,
        thickness=rise.astype(np.float32),
        shell_faces=faces.astype(np.int32),
        hull_faces=(hull + len(used)).astype(np.int32),
        attributes=np.concatenate([shell_attributes, attributes]).astype(np.float32),
        density=density / 10,
        strands=strand_tile(style["kind"]),
        colour=colour,
        look=np.array([style["shine"], 0.35 if style["kind"] != "curly" else 0.3, style["soft"]], np.float32),
    ), scalp_mask.astype(np.float32)


def _style(gender: float, age: float, tone: float, rng: np.random.Generator) -> dict[str, Any]:
    """Sample the parameters of a hair style."""
    is_woman = gender < 0.5
    names = ["bald", "buzz", "short", "swept", "fringe", "long", "long_fringe", "afro", "tied"]
    women = [0.02, 0.02, 0.1, 0.08, 0.06, 0.35, 0.17, 0.05, 0.15]
    men = [0.09, 0.16, 0.31, 0.2, 0.13, 0.03, 0.02, 0.05, 0.01]
    odds = np.array(women if is_woman else men)
    if tone > 0.55:
        odds[[1, 7]] *= 2.2
    name = str(rng.choice(names, p=odds / odds.sum()))
    volume = {
        "bald": 0,
        "buzz": 0.002,
        "short": rng.uniform(0.006, 0.02),
        "swept": rng.uniform(0.015, 0.035),
        "fringe": rng.uniform(0.01, 0.024),
        "long": rng.uniform(0.012, 0.028),
        "long_fringe": rng.uniform(0.012, 0.026),
        "afro": rng.uniform(0.03, 0.07),
        "tied": rng.uniform(0.003, 0.009),
    }[name]
    kind = "curly" if name in ("afro", "buzz") or rng.random() < 0.15 + 0.3 * tone else rng.choice(["straight", "wavy"])
    return {
        "volume": volume,
        "kind": str(kind),
        "length": rng.uniform(0.06, 0.34) if name.startswith("long") else 0.0,
        "open": rng.uniform(30, 62),
        "fall": 0.13,
        "spread": rng.uniform(-80, 120),
        "front": rng.uniform(14, 27)
        if "fringe" in name
        else rng.uniform(36, 46) + (6 if not is_woman and age > 0.8 else 0),
        "temple": 0.0 if is_woman else rng.uniform(0, 9),
        "side": rng.uniform(-14, 2) if name != "bald" else 10,
        "ragged": rng.uniform(0.5, 1.4) * (1.6 if "fringe" in name else 1.0),
        "part": float(rng.choice([0, 0, -1, 1])) if volume > 0.005 else 0.0,
        "scalp_cover": {"bald": rng.uniform(0, 0.25), "buzz": rng.uniform(0.45, 0.8)}.get(name, 0.97),
        "strands": rng.uniform(3, 6),
        "shine": rng.uniform(0.15, 0.8) if kind != "curly" else 0.1,
        "soft": rng.uniform(0.5, 1.1) if "fringe" in name else rng.uniform(0.3, 0.7),
    }


def _hairline(turn: np.ndarray, style: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Return the height in degrees above which hair grows, by absolute turn from the front."""
    front, temple = style["front"], style["temple"]
    knots = [0, 18, 34, 50, 62, 70, 84, 100, 130, 180]
    heights = [
        front - 2,
        front,
        front + temple,
        front - 4 + temple * 0.5,
        max(8, front - 22),
        style["side"],
        14,
        -24,
        -34,
        -38,
    ]
    if front < 30:  # a fringe ends at the temples
        heights[3:5] = front, front - 4
    line: np.ndarray = np.interp(turn, knots, np.array(heights) + rng.normal(0, 1.0, len(knots)))
    return line

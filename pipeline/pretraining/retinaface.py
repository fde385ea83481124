"""RetinaFace from nothing but rendered scenes: augmented batches, MultiBox loss, training, scores.

Batch k is a function of (seed, k), so a killed run that resumes sees what a whole one sees.
"""

# B images, A anchors, N faces of an image, H height, W width
from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.ops import box_iou

from models.retinaface import Faces, RawOutput, RetinaFace, anchors, decode_boxes, encode_boxes, encode_points
from pipeline.runtime.atomic import file_sha256, write_atomically
from pipeline.runtime.checkpoint import Checkpoint
from pipeline.runtime.progress import track
from pipeline.synthetic.render import SceneTruth
from pipeline.synthetic.scenes import (
    MIN_SEEN_FRAC,
    Scene,
    SceneFolder,
    cropped,
    marked,
    mirrored,
    mosaic,
    occlude,
    recoloured,
    render_scenes,
    scenes,
    with_scrambled_face,
    zoomed,
)

INPUT_SIDES_PX = (256, 320, 384, 512)
"""Sides of training images; each step takes one of them, with as many images as make `BATCH_PX`."""
BATCH_PX = 8 * 320 * 320
POSITIVE_IOU, NEGATIVE_IOU = 0.4, 0.3
NEGATIVES_PER_POSITIVE = 3
BOX_WEIGHT, POINTS_WEIGHT = 2.0, 0.25
"""Weights of the losses beside that of the class."""
AS_RENDERED_FRAC = 0.4
"""Part of the training images that keep the renderer's own size, colours and blur."""
EVALUATION_SEED_OFFSET = 1_000_003
LOWEST_SCORE = 0.02


class Targets(NamedTuple):
    """Labels (B, A): 1 face, 0 none, -1 neither; where they are 1, encoded boxes (B, A, 4) and points (B, A, 10)."""

    labels: Tensor
    boxes: Tensor
    points: Tensor


class DetectorScores(NamedTuple):
    """How a detector does on scenes; recalls are at the lowest score threshold with the allowed false positives."""

    num_scenes: int
    num_faces: int
    """Those that count: over the least size, seen by `MIN_SEEN_FRAC`. To find another is neither right nor wrong."""
    recall: float
    threshold: float
    recall_at_half: float
    """Recall at the score threshold 0.5."""
    false_positives_at_half: int
    mean_iou: float
    mean_point_error_frac: float
    """Mean distance of the five points over the square root of the box's area."""


def augmented_batch(rendered: SceneFolder, *, seed: int, step: int) -> list[Scene]:
    """Batch `step`, a function of (seed, step): scenes zoomed, mosaicked, mirrored, covered and recoloured.

    Some are left as they are but for a window: what is only ever seen distorted is judged badly at low false alarms.
    """
    rng = np.random.default_rng([seed, step])
    side_px = int(rng.choice(INPUT_SIDES_PX))
    return [_augmented(rendered, side_px, rng) for _ in range(round(BATCH_PX / side_px**2))]


def _augmented(rendered: SceneFolder, side_px: int, rng: np.random.Generator) -> Scene:
    def random_zoom(side_px: int) -> Scene:
        return zoomed(rendered[int(rng.integers(len(rendered)))], side_px, rng)

    if rng.random() < AS_RENDERED_FRAC:
        return marked(cropped(rendered[int(rng.integers(len(rendered)))], side_px, rng))
    is_mosaic = rng.random() < 0.2
    scene = mosaic([random_zoom(side_px // 2) for _ in range(4)]) if is_mosaic else random_zoom(side_px)
    if rng.random() < 0.5:
        scene = mirrored(scene)
    scene = marked(scene)
    if len(scene.boxes) and rng.random() < 0.3:
        scene = scene._replace(image=with_scrambled_face(scene, rng))
    if rng.random() < 0.2:
        scene = scene._replace(image=occlude(scene, rng))
    return scene._replace(image=recoloured(scene.image, rng))


def targets_of(batch: Sequence[Scene], *, device: torch.device) -> Targets:
    """Targets of scenes of one size."""
    side_px = batch[0].image.shape[0]
    anchors_A4 = anchors(side_px, side_px, device=device)
    rows = []
    for scene in batch:
        boxes_N4 = torch.from_numpy(scene.boxes).to(device) / side_px
        points_N52 = torch.from_numpy(scene.points).to(device) / side_px
        labels_A, face_A = assigned(boxes_N4, torch.from_numpy(scene.is_learned).to(device), anchors_A4)
        boxes_A4 = torch.zeros_like(anchors_A4)
        points_A10 = anchors_A4.new_zeros(len(anchors_A4), 10)
        is_face_A = labels_A == 1
        boxes_A4[is_face_A] = encode_boxes(boxes_N4[face_A[is_face_A]], anchors_A4[is_face_A])
        points_A10[is_face_A] = encode_points(points_N52[face_A[is_face_A]], anchors_A4[is_face_A])
        rows.append((labels_A, boxes_A4, points_A10))
    return Targets(*(torch.stack(column) for column in zip(*rows, strict=True)))


def assigned(boxes_N4: Tensor, is_learned_N: Tensor, anchors_A4: Tensor) -> tuple[Tensor, Tensor]:
    """Label of each anchor (1 face, 0 none, -1 neither) and the index of its face.

    A face gets the anchors that overlap it by `POSITIVE_IOU` and the one that overlaps it best. Below `NEGATIVE_IOU`
    an anchor is background, unless half of it lies on a face that is not to be learned.
    """
    labels_A = torch.zeros(len(anchors_A4), dtype=torch.long, device=anchors_A4.device)
    if not len(boxes_N4):
        return labels_A, labels_A
    corners_A4 = torch.cat([anchors_A4[:, :2] - anchors_A4[:, 2:] / 2, anchors_A4[:, :2] + anchors_A4[:, 2:] / 2], 1)
    low_AN2 = torch.maximum(corners_A4[:, None, :2], boxes_N4[None, :, :2])
    high_AN2 = torch.minimum(corners_A4[:, None, 2:], boxes_N4[None, :, 2:])
    shared_AN = (high_AN2 - low_AN2).clamp(min=0).prod(2)
    area_A = anchors_A4[:, 2:].prod(1)
    area_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)
    iou_AN = shared_AN / (area_A[:, None] + area_N - shared_AN)

    near_A = (iou_AN >= NEGATIVE_IOU).any(1)
    on_unlearned_A = ((shared_AN >= 0.5 * area_A[:, None]) & ~is_learned_N).any(1)
    labels_A[near_A | on_unlearned_A] = -1
    iou_AN = iou_AN.masked_fill(~is_learned_N, 0)
    best_iou_A, face_A = iou_AN.max(1)
    labels_A[best_iou_A >= POSITIVE_IOU] = 1
    learned_N = is_learned_N.nonzero()[:, 0]
    best_anchors_N = iou_AN[:, learned_N].argmax(0)
    labels_A[best_anchors_N] = 1
    face_A[best_anchors_N] = learned_N
    return labels_A, face_A


def multibox_loss(raw: RawOutput, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of class, box and points, per face anchor (RetinaFace, Eq. 1).

    Class: cross-entropy of all face anchors and, over the batch, of the three times as many worst background anchors.
    How much of a face an anchor is to claim rises from 0 to 1 with the IoU of its present box from 0.3 to 0.6, so that
    a score tells whether the box hits. Box and points: smooth L1 of the encoded values of face anchors.
    """
    is_face_BA, is_none_BA = targets.labels == 1, targets.labels == 0
    num_faces = max(int(is_face_BA.sum()), 1)
    found_N4, true_N4 = raw.boxes[is_face_BA], targets.boxes[is_face_BA]
    log_p_BA2 = raw.logits.log_softmax(-1)
    claim_N = ((_encoded_iou(found_N4.detach(), true_N4) - 0.3) / 0.3).clamp(0, 1)
    of_faces = -(torch.stack([1 - claim_N, claim_N], -1) * log_p_BA2[is_face_BA]).sum()
    background = -log_p_BA2[is_none_BA][:, 0]
    hardest = background.topk(min(NEGATIVES_PER_POSITIVE * num_faces, len(background)), sorted=False).values
    of_box = F.smooth_l1_loss(found_N4, true_N4, reduction="sum", beta=0.3)
    of_points = F.smooth_l1_loss(raw.points[is_face_BA], targets.points[is_face_BA], reduction="sum", beta=0.3)
    return (of_faces + hardest.sum()) / num_faces, of_box / num_faces, of_points / num_faces


def _encoded_iou(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """IoU (N,) of encoded boxes of the same square anchors, whatever those are."""
    anchor_4 = a_N4.new_tensor([0.0, 0.0, 1.0, 1.0])
    a_N4, b_N4 = decode_boxes(a_N4, anchor_4.expand(len(a_N4), 4)), decode_boxes(b_N4, anchor_4.expand(len(b_N4), 4))
    low_N2, high_N2 = torch.maximum(a_N4[:, :2], b_N4[:, :2]), torch.minimum(a_N4[:, 2:], b_N4[:, 2:])
    shared_N = (high_N2 - low_N2).clamp(min=0).prod(1)
    areas_N = (a_N4[:, 2:] - a_N4[:, :2]).prod(1) + (b_N4[:, 2:] - b_N4[:, :2]).prod(1)
    return shared_N / (areas_N - shared_N)


def train_retinaface(
    out: Path,
    *,
    bank_path: Path,
    work: Path,
    device: torch.device,
    num_steps: int = 5000,
    num_scenes: int = 6000,
    scene_px: int = 512,
    max_lr: float = 4e-3,
    seed: int = 0,
    num_workers: int = 2,
    init_from: Path | None = None,
) -> None:
    """Train the MobileNet RetinaFace, from scratch or from weights, and write its weights (safetensors, fp32) to `out`.

    `work` holds the rendered scenes. A killed training goes on from its `Checkpoint`.
    """
    rendered = render_scenes(
        work / f"scenes_{scene_px}_{seed}",
        bank_path=bank_path,
        num_scenes=num_scenes,
        seed=seed,
        size_px=scene_px,
        num_workers=num_workers,
    )
    torch.manual_seed(seed)
    network = RetinaFace("mobilenet0.25").to(device).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=max_lr, weight_decay=0.01)
    settings: dict[str, float | str] = {
        "num_steps": num_steps,
        "num_scenes": num_scenes,
        "scene_px": scene_px,
        "max_lr": max_lr,
        "seed": seed,
        "init_from": file_sha256(init_from) if init_from else "nothing",
    }
    if init_from:
        network.load_state_dict(load_file(init_from))
    first_batch = 1_000_000 if init_from else 0  # going on from weights, see other batches than those that made them
    checkpoint = Checkpoint(out, settings, network=network, optimiser=optimiser)
    num_before = checkpoint.resume(device)
    with track("train RetinaFace", total=num_steps, unit="steps", num_before=num_before) as progress:
        for step in range(num_before, num_steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, num_steps=num_steps, max_lr=max_lr)
            _train_step(network, optimiser, augmented_batch(rendered, seed=seed, step=first_batch + step), device)
            progress(1)
            checkpoint.save_at_times(step + 1)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomically(out, lambda temp: save_file(weights, temp))
    checkpoint.remove()


def learning_rate(step: int, *, num_steps: int, max_lr: float, warm_up_frac: float = 0.06) -> float:
    """Linear rise to `max_lr`, then half a cosine to zero."""
    warm_up = max(1, round(num_steps * warm_up_frac))
    if step < warm_up:
        return max_lr * (step + 1) / warm_up
    return max_lr * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


def _train_step(
    network: RetinaFace, optimiser: torch.optim.Optimizer, batch: Sequence[Scene], device: torch.device
) -> None:
    images_BHW3 = torch.from_numpy(np.stack([scene.image for scene in batch])).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        raw = network.raw(images_BHW3.permute(0, 3, 1, 2).contiguous())
    raw = RawOutput(*(values.float() for values in raw))
    of_class, of_box, of_points = multibox_loss(raw, targets_of(batch, device=device))
    optimiser.zero_grad()
    (of_class + BOX_WEIGHT * of_box + POINTS_WEIGHT * of_points).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimiser.step()


@torch.inference_mode()
def evaluate_detector(
    detector: RetinaFace,
    *,
    bank_path: Path,
    device: torch.device,
    num_scenes: int = 1000,
    size_px: int = 512,
    seed: int = 0,
    min_side_px: float = 32.0,
) -> DetectorScores:
    """Scores on scenes that no training of any seed below a million has seen; faces over `min_side_px` count."""
    unseen = scenes(bank_path, seed=EVALUATION_SEED_OFFSET + seed, indices=range(num_scenes), size_px=size_px)
    found, truths = [], []
    with track("evaluate RetinaFace", total=num_scenes, unit="scenes") as step:
        for image, truth in unseen:
            batch_B3HW = torch.from_numpy(image)[None].permute(0, 3, 1, 2).to(device)
            found.append(Faces(*(v.cpu() for v in detector(batch_B3HW, score_threshold=LOWEST_SCORE)[0])))
            truths.append(truth)
            step(1)
    return detection_scores(found, truths, min_side_px=min_side_px)


def detection_scores(
    found: Sequence[Faces],
    truths: Sequence[SceneTruth],
    *,
    min_side_px: float,
    min_iou: float = 0.5,
    false_positives_per_image: float = 0.01,
) -> DetectorScores:
    """Scores of the faces found in each image against its true ones.

    Best first, a found face takes the true one it overlaps most, if that is by `min_iou` and not taken; else it is a
    false positive, unless half of it lies on a true face that does not count (`DetectorScores`; a face's size is its
    longer side).
    """
    is_counted = [
        ((truth.boxes[:, 2:] - truth.boxes[:, :2]).max(1, initial=0) > min_side_px) & (truth.seen >= MIN_SEEN_FRAC)
        for truth in truths
    ]
    num_faces = int(sum(counted.sum() for counted in is_counted))
    hits, false_scores = [], []
    for faces, truth, counted in zip(found, truths, is_counted, strict=True):
        boxes = truth.boxes
        iou = box_iou(faces.boxes, torch.from_numpy(boxes)).numpy()
        on_uncounted = _shared_fracs(faces.boxes.numpy(), boxes[~counted]).max(1, initial=0) >= 0.5
        is_taken = np.zeros(len(boxes), bool)
        for row, score in enumerate(faces.scores.tolist()):
            face = int(iou[row].argmax()) if len(boxes) else -1
            if face < 0 or iou[row, face] < min_iou or is_taken[face]:
                if not on_uncounted[row]:
                    false_scores.append(score)
            elif counted[face]:
                is_taken[face] = True
                error_px = np.linalg.norm(faces.points[row].numpy() - truth.points[face], axis=1).mean()
                hits.append((score, iou[row, face], error_px / np.sqrt((boxes[face, 2:] - boxes[face, :2]).prod())))
    scores, ious, errors = np.array(hits, np.float64).reshape(-1, 3).T
    false = np.sort(false_scores)[::-1]
    num_allowed = int(false_positives_per_image * len(found) + 1e-9)
    threshold = float(false[num_allowed]) if num_allowed < len(false) else LOWEST_SCORE
    is_found = scores > threshold
    return DetectorScores(
        num_scenes=len(found),
        num_faces=num_faces,
        recall=float(is_found.sum() / max(num_faces, 1)),
        threshold=threshold,
        recall_at_half=float((scores > 0.5).sum() / max(num_faces, 1)),
        false_positives_at_half=int((false > 0.5).sum()),
        mean_iou=float(ious[is_found].mean()) if is_found.any() else math.nan,
        mean_point_error_frac=float(errors[is_found].mean()) if is_found.any() else math.nan,
    )


def _shared_fracs(boxes_n4: np.ndarray, others_m4: np.ndarray) -> np.ndarray:
    """How much of each box lies on each of the others, (n, m)."""
    low = np.maximum(boxes_n4[:, None, :2], others_m4[None, :, :2])
    high = np.minimum(boxes_n4[:, None, 2:], others_m4[None, :, 2:])
    return (high - low).clip(0).prod(2) / (boxes_n4[:, 2:] - boxes_n4[:, :2]).prod(1)[:, None]

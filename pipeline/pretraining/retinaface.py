"""Train the MobileNet RetinaFace on rendered scenes only: augmented batches, MultiBox loss, scores.

Batch k is a function of (seed, k), so a training that was killed and resumed sees the batches of an undisturbed one.
"""

# B images, A anchors, N faces of an image, H height, W width
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torchvision.ops import box_area, box_convert, box_iou

from models.retinaface import Faces, RawOutput, RetinaFace, anchors, decode_boxes, encode_boxes, encode_points
from pipeline.runtime.atomic import file_sha256, write_safetensors
from pipeline.runtime.checkpoint import Checkpoint, checkpoint_beside
from pipeline.runtime.progress import track
from pipeline.runtime.schedules import schedule, warm_up_cosine
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
"""Sides of training images; each step draws one of them, and as many images as have about `BATCH_PX` together."""
BATCH_PX = 8 * 320 * 320
POSITIVE_IOU, NEGATIVE_IOU = 0.4, 0.3
NEGATIVES_PER_POSITIVE = 3
BOX_WEIGHT, POINTS_WEIGHT = 2.0, 0.25
"""Weights of the box and point losses; that of the class loss is 1."""
AS_RENDERED_FRAC = 0.4
"""Share of the training images that keep the size, colours and blur of the renderer."""
WARM_UP_FRAC = 0.06
"""Share of the steps in which the learning rate rises."""
EVALUATION_SEED_OFFSET = 1_000_003
LOWEST_SCORE = 0.02


class Targets(NamedTuple):
    """Labels (B, A): 1 face, 0 background, -1 ignored; for label 1, encoded boxes (B, A, 4) and points (B, A, 10)."""

    labels: Tensor
    boxes: Tensor
    points: Tensor


class DetectorScores(NamedTuple):
    """Scores of a detector on scenes; `recall` is at the lowest threshold with the allowed false positives."""

    num_scenes: int
    num_faces: int
    """Faces that count: over the least size and visible by `MIN_SEEN_FRAC`. Detections of other faces are ignored."""
    recall: float
    threshold: float
    recall_at_half: float
    """Recall at the score threshold 0.5."""
    false_positives_at_half: int
    mean_iou: float
    mean_point_error_frac: float
    """Mean distance of the five points, in square roots of the box's area."""


def augmented_batch(rendered: SceneFolder, *, seed: int, step: int) -> list[Scene]:
    """Return batch `step`, a function of (seed, step): scenes zoomed, mosaicked, mirrored, occluded and recoloured.

    A share of `AS_RENDERED_FRAC` is only cropped: a detector that sees distorted images only has more false positives.
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


def make_targets(batch: Sequence[Scene], *, device: torch.device) -> Targets:
    """Return the targets of scenes, all square and of one size."""
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
    """Return the label of each anchor (A,): 1 face, 0 background, -1 ignored; and the index (A,) of its face.

    boxes_N4: xyxy, in the units of the anchors (centre, width, height). is_learned_N: faces that can be targets. A face
    gets the anchors with an IoU of at least `POSITIVE_IOU` and the one with the highest. Anchors with an IoU below
    `NEGATIVE_IOU` are background, unless half of their area is on a face that is not learned.
    """
    labels_A = torch.zeros(len(anchors_A4), dtype=torch.long, device=anchors_A4.device)
    if not len(boxes_N4):
        return labels_A, labels_A
    corners_A4 = box_convert(anchors_A4, "cxcywh", "xyxy")
    iou_AN = box_iou(corners_A4, boxes_N4)

    near_A = (iou_AN >= NEGATIVE_IOU).any(1)
    on_unlearned_A = ((covered_fracs(corners_A4, boxes_N4) >= 0.5) & ~is_learned_N).any(1)
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
    """Return the class, box and point losses, scalars averaged over the face anchors (RetinaFace, Eq. 1).

    Class: cross-entropy of all face anchors and of the hardest background anchors of the batch, three times as many.
    The target of a face anchor rises from 0 to 1 as the IoU of its predicted box rises from 0.3 to 0.6, so that scores
    reflect the accuracy of boxes. Box and points: smooth L1 of the encoded values of face anchors.
    """
    is_face_BA, is_none_BA = targets.labels == 1, targets.labels == 0
    num_faces = max(int(is_face_BA.sum()), 1)
    found_N4, true_N4 = raw.boxes[is_face_BA], targets.boxes[is_face_BA]
    log_p_BA2 = raw.logits.log_softmax(-1)
    target_N = ((_encoded_iou(found_N4.detach(), true_N4) - 0.3) / 0.3).clamp(0, 1)
    of_faces = -(torch.stack([1 - target_N, target_N], -1) * log_p_BA2[is_face_BA]).sum()
    background = -log_p_BA2[is_none_BA][:, 0]
    hardest = background.topk(min(NEGATIVES_PER_POSITIVE * num_faces, len(background)), sorted=False).values
    of_box = F.smooth_l1_loss(found_N4, true_N4, reduction="sum", beta=0.3)
    of_points = F.smooth_l1_loss(raw.points[is_face_BA], targets.points[is_face_BA], reduction="sum", beta=0.3)
    return (of_faces + hardest.sum()) / num_faces, of_box / num_faces, of_points / num_faces


def _encoded_iou(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """IoU (N,) of pairs of encoded boxes; it is the same for any square anchor that the pair shares."""
    anchor_4 = a_N4.new_tensor([0.0, 0.0, 1.0, 1.0])
    a_N4, b_N4 = decode_boxes(a_N4, anchor_4.expand(len(a_N4), 4)), decode_boxes(b_N4, anchor_4.expand(len(b_N4), 4))
    iou_N: Tensor = box_iou(a_N4, b_N4).diagonal()
    return iou_N


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
    """Train the MobileNet RetinaFace, from scratch or from `init_from`, and write fp32 safetensors to `out`.

    work: folder of the rendered scenes. A killed training resumes from its `Checkpoint`; `WeightsError` if that has
    other settings.
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
    optimiser = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.01)
    rates = schedule(optimiser, partial(learning_rate, num_steps=num_steps, max_lr=max_lr))
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
    first_batch = 1_000_000 if init_from else 0  # other batches than those that the initial weights were trained on
    checkpoint = Checkpoint(checkpoint_beside(out), settings, network=network, optimiser=optimiser, schedule=rates)
    num_before = checkpoint.resume(device)
    with track("train RetinaFace", total=num_steps, unit="steps", num_before=num_before) as progress:
        for step in range(num_before, num_steps):
            _train_step(network, optimiser, augmented_batch(rendered, seed=seed, step=first_batch + step), device)
            rates.step()
            progress(1)
            checkpoint.save_if_due(step + 1)
    write_safetensors(out, network.state_dict())
    checkpoint.remove()


def learning_rate(step: int, *, num_steps: int, max_lr: float, warm_up_frac: float = WARM_UP_FRAC) -> float:
    """Return the learning rate of a step: a linear rise to `max_lr`, then half a cosine to zero."""
    num_warm_up_steps = max(1, round(num_steps * warm_up_frac))
    return warm_up_cosine(step, max_lr=max_lr, num_warm_up_steps=num_warm_up_steps, num_steps=num_steps)


def _train_step(
    network: RetinaFace, optimiser: torch.optim.Optimizer, batch: Sequence[Scene], device: torch.device
) -> None:
    images_BHW3 = torch.from_numpy(np.stack([scene.image for scene in batch])).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        raw = network.raw(images_BHW3.permute(0, 3, 1, 2).contiguous())
    raw = RawOutput(*(values.float() for values in raw))
    of_class, of_box, of_points = multibox_loss(raw, make_targets(batch, device=device))
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
    """Return `detection_scores` on scenes that no training with a seed below a million has seen."""
    unseen = scenes(bank_path, seed=EVALUATION_SEED_OFFSET + seed, indices=range(num_scenes), size_px=size_px)
    found, truths = [], []
    with track("evaluate RetinaFace", total=num_scenes, unit="scenes") as on_progress:
        for image, truth in unseen:
            batch_B3HW = torch.from_numpy(image)[None].permute(0, 3, 1, 2).to(device)
            found.append(Faces(*(v.cpu() for v in detector(batch_B3HW, score_threshold=LOWEST_SCORE)[0])))
            truths.append(truth)
            on_progress(1)
    return detection_scores(found, truths, min_side_px=min_side_px)


def detection_scores(
    found: Sequence[Faces],
    truths: Sequence[SceneTruth],
    *,
    min_side_px: float,
    min_iou: float = 0.5,
    false_positives_per_image: float = 0.01,
) -> DetectorScores:
    """Return the scores of the detected faces `found`, best first, of each image against its true faces.

    A detection is matched with the true face of the highest IoU, if that is at least `min_iou` and the face is not
    matched yet; else it is a false positive, unless half of its area is on a true face that does not count
    (`DetectorScores`). Faces count whose longer side exceeds `min_side_px`.
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
        uncounted = torch.from_numpy(boxes[~counted])
        on_uncounted = (covered_fracs(faces.boxes, uncounted) >= 0.5).any(1).tolist()
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


def covered_fracs(boxes_N4: Tensor, others_M4: Tensor) -> Tensor:
    """Return the share (N, M) of the area of each box that lies on each of the others; boxes are xyxy."""
    low_NM2 = torch.maximum(boxes_N4[:, None, :2], others_M4[None, :, :2])
    high_NM2 = torch.minimum(boxes_N4[:, None, 2:], others_M4[None, :, 2:])
    fracs_NM: Tensor = (high_NM2 - low_NM2).clamp(min=0).prod(2) / box_area(boxes_N4)[:, None]
    return fracs_NM

"""Training losses of the head: pure functions of logits and labels."""

# B frames, A action units, N training frames; labels are 1 present, 0 absent, -1 unknown
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.head import HeadOutput
from models.variants import KD_FORMS


class Losses(NamedTuple):
    """Scalar losses: `total` is `classification` plus lambda times `distillation` (Eq. 10)."""

    total: Tensor
    classification: Tensor
    distillation: Tensor


def class_weights(labels_NA: Tensor, *, aus: Sequence[int] | None = None) -> Tensor:
    """Return w_i = A (1 / r_i) / sum_j (1 / r_j), float32 (A,); r_i is the positive rate of AU i's known labels.

    `labels_NA` (N, A) are the labels of the fold's training frames. Raises `ValueError`, naming the action units by
    their numbers in `aus`, if one has no known or no positive label: its weight would be infinite.
    """
    num_positive_A = (labels_NA == 1).sum(0).double()
    num_known_A = (labels_NA >= 0).sum(0).double()
    without = {
        "has a known label of": num_known_A == 0,
        "is positive for": (num_known_A > 0) & (num_positive_A == 0),
    }
    faults = [
        f"no training frame {what} {', '.join(f'AU{aus[i]}' if aus else f'column {i}' for i in columns)}"
        for what, is_without_A in without.items()
        if (columns := torch.nonzero(is_without_A).flatten().tolist())
    ]
    if faults:
        raise ValueError(f"{', and '.join(faults)}, so the class weights are undefined")
    inverse_rate_A = num_known_A / num_positive_A
    return (len(inverse_rate_A) * inverse_rate_A / inverse_rate_A.sum()).float()


def weighted_bce(logits_BA: Tensor, labels_BA: Tensor, weights_A: Tensor) -> Tensor:
    """Return the AU-weighted binary cross-entropy, averaged over the known labels; 0 if none is known (Eq. 9).

    `logits_BA`, `labels_BA` (B, A) in {0, 1, -1 unknown}, `weights_A` (A,); the result is a scalar.
    """
    is_known_BA = labels_BA >= 0
    targets_BA = labels_BA.clamp_min(0).to(logits_BA.dtype)
    loss_BA = F.binary_cross_entropy_with_logits(logits_BA, targets_BA, weight=weights_A, reduction="none")
    return (loss_BA * is_known_BA).sum() / is_known_BA.sum().clamp_min(1)


def bernoulli_kl(student_BA: Tensor, teacher_BA: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of one Bernoulli per AU, averaged over frames and AUs, times temperature^2 (Eq. 8).

    Both are logits (B, A); no gradient flows into the teacher.
    """
    student_BA, teacher_BA = student_BA / temperature, teacher_BA.detach() / temperature
    present_BA = teacher_BA.sigmoid() * (F.logsigmoid(teacher_BA) - F.logsigmoid(student_BA))
    absent_BA = (-teacher_BA).sigmoid() * (F.logsigmoid(-teacher_BA) - F.logsigmoid(-student_BA))
    return (present_BA + absent_BA).mean() * temperature**2


def softmax_kl(student_BA: Tensor, teacher_BA: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return KL(teacher || student) of the softmax over AUs, averaged over frames, times temperature^2 (Eq. 8).

    Both are logits (B, A); no gradient flows into the teacher.
    """
    student_BA = (student_BA / temperature).log_softmax(1)
    teacher_BA = (teacher_BA.detach() / temperature).log_softmax(1)
    return F.kl_div(student_BA, teacher_BA, reduction="batchmean", log_target=True) * temperature**2


def total_loss(
    output: HeadOutput,
    labels_BA: Tensor,
    weights_A: Tensor,
    *,
    kd_weight: float = 0.2,
    kd_form: str = "bernoulli",
    kd_temperature: float | None = None,
) -> Losses:
    """Return L_cls of all branches and the ensemble, plus `kd_weight` times L_kd of all branches (Eq. 8 to 10).

    labels_BA: (B, A) in {0, 1, -1 unknown}. weights_A: (A,), see `class_weights`. kd_form: one of `KD_FORMS`, else
    `ValueError`. kd_temperature: None takes the default of the form, 1 or 4. A head with a single branch has no
    ensemble and learns from the labels only.
    """
    if kd_form not in KD_FORMS:
        raise ValueError(f"kd_form must be one of {', '.join(KD_FORMS)}, found {kd_form!r}")
    sources = output.branches if output.ensemble is None else (*output.branches, output.ensemble)
    classification = torch.stack([weighted_bce(logits, labels_BA, weights_A) for logits in sources]).sum()
    if output.ensemble is None:
        return Losses(classification, classification, torch.zeros_like(classification))
    divergence = bernoulli_kl if kd_form == "bernoulli" else softmax_kl
    settings = {} if kd_temperature is None else {"temperature": kd_temperature}
    distillation = torch.stack([divergence(logits, output.ensemble, **settings) for logits in output.branches]).sum()
    return Losses(classification + kd_weight * distillation, classification, distillation)

"""From the rates of a sample to the size and the times of the whole, by profile and for crops mode."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from pipeline.config import ExperimentConfig, Profile
from pipeline.forecast.sample import SampleRates
from pipeline.protocols import train_parts

Bound = Literal["head", "reading", "disk", "FAN"]
_NOTICEABLE = 0.1
"""Share of an epoch that the heads wait for data, from which reading bounds it."""


@dataclass(frozen=True)
class Forecast:
    """What one way to train would cost on this machine: a cache's profile, or crops mode (profile None).

    num_bytes: of the cache. build_s: to fill it, from crops. epoch_s: of all folds together. experiment_s: all epochs
    and the scores. bound: what an epoch's time depends on. pays_after: the number of experiments after which building
    and reading the cache has taken less time than crops mode; None if it never does.
    """

    profile: Profile | None
    num_bytes: int
    build_s: float
    epoch_s: float
    experiment_s: float
    bound: Bound
    pays_after: int | None


def forecast(rates: SampleRates, members: Sequence[ExperimentConfig], frames: pd.DataFrame) -> list[Forecast]:
    """Return the forecast of each measured profile, then of crops mode.

    members: the experiments that are trained together. frames: the whole index of the data set.
    """
    settings = members[0]
    num_views, num_read = settings.cache.views.num_views, len(frames)
    num_epochs = max(each.train.num_epochs for each in members)
    num_learned = sum(_num_epoch_frames(each, frames) for each in members)
    num_scored = sum(int(frames["part"].isin(each.parts).sum()) for each in members)
    num_scored_views = num_read * (2 if any(each.train.averages_flip for each in members) else 1)
    own = rates.profiles.get(settings.cache.features.profile) or next(iter(rates.profiles.values()))
    head_s = own.epoch_s * (1 - own.waiting) * num_learned
    live_epoch_s = head_s + rates.live_s * num_read
    live_s = num_epochs * live_epoch_s + rates.live_s * num_scored_views + own.evaluation_s * num_scored
    found = []
    for profile, rate in rates.profiles.items():
        num_bytes = num_read * num_views * rate.view_bytes
        learn_s = rate.epoch_s * num_learned
        disk_s = num_read * rate.view_bytes / rates.disk_bytes_per_s if num_bytes > _memory_bytes() else 0.0
        epoch_s = max(learn_s, disk_s)
        build_s = num_read * num_views * (rates.fan_s + rate.encode_s)
        experiment_s = num_epochs * epoch_s + rate.evaluation_s * num_scored
        gain_s = live_s - experiment_s
        found.append(
            Forecast(
                profile=profile,
                num_bytes=round(num_bytes),
                build_s=build_s,
                epoch_s=epoch_s,
                experiment_s=experiment_s,
                bound="disk" if disk_s > learn_s else "reading" if rate.waiting > _NOTICEABLE else "head",
                pays_after=math.ceil(build_s / gain_s) if gain_s > 0 else None,
            )
        )
    bound: Bound = "FAN" if rates.live_s * num_read > head_s else "head"
    return [*found, Forecast(None, 0, 0.0, live_epoch_s, live_s, bound, None)]


def _num_epoch_frames(experiment: ExperimentConfig, frames: pd.DataFrame) -> int:
    """Return the frames that the folds of an experiment learn from in an epoch: whole batches only."""
    size = experiment.train.batch_size
    nums = (int(frames["part"].isin(train_parts(part)).sum()) for part in experiment.parts)
    return sum(num // size * size for num in nums)


def _memory_bytes() -> int:
    """Return the memory of this machine, which keeps files that were read."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

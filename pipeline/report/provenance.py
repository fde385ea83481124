"""What a run was made of and from, in words: versions, device, seed, cache, data, and the commands that repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.catalog import Catalog
from pipeline.datasets.index import coverage
from pipeline.errors import ConfigError, DataError
from pipeline.project import find_experiment
from pipeline.runtime.text import join_first
from pipeline.tables import read_table_if_intact
from pipeline.training.run_files import RESULT_NAME, finished_folds, read_history, read_run

NOT_RECORDED = "not recorded: the run is of an earlier version"


def describe_run(folder: Path) -> dict[str, str]:
    """Return what decided a run, by its name in words; what an earlier version did not record is named so."""
    record, results = read_run(folder), _results(folder)
    versions = record.get("versions", {})
    devices = sorted({str(result.get("device", NOT_RECORDED)) for result in results})
    ends = sorted(str(result["finished_at"]) for result in results if "finished_at" in result)
    return {
        "run": folder.name,
        "experiment": record["experiment"],
        "data set": record["dataset"],
        "protocol": record.get("protocol", NOT_RECORDED),
        "seed": str(record.get("train", {}).get("seed", NOT_RECORDED)),
        "device": ", ".join(devices),
        "versions at training": ", ".join(f"{name} {number}" for name, number in versions.items()) or NOT_RECORDED,
        "version of this report": f"fantrans {version('fantrans')}",
        "last fold finished at": ends[-1] if ends else NOT_RECORDED,
        "cache fingerprint": record["cache"],
        "cache revision": str(record.get("revision", NOT_RECORDED)),
        "hash of the cached frames": str(record.get("index", NOT_RECORDED)),
        "hash of the labels": str(record.get("labels", NOT_RECORDED)),
        "initialised from": record.get("init_from") or "no other run",
    }


def repeat_commands(record: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the commands that make a run again and report it; without those of an experiment that is not a file.

    record: content of the run's `run.json`. A member of a set, and an experiment with overrides, has no file.
    """
    dataset, experiment = record["dataset"], record["experiment"]
    report = f"fantrans report {folder.name}"
    try:
        find_experiment(experiment)
    except ConfigError:
        return [report]
    start = f" --init-from {record['init_from']}" if record.get("init_from") else ""
    return [
        f"fantrans refresh {dataset} --experiment {experiment}",
        f"fantrans train {dataset} --experiment {experiment}{start}",
        report,
    ]


def describe_gaps(folder: Path) -> list[str]:
    """Return sentences on the subjects, recordings and frames that a run lacks."""
    record, results = read_run(folder), _results(folder)
    if "gaps" not in record:
        sentences = [f"Missing subjects: {NOT_RECORDED}."]
    elif record["gaps"]:
        sentences = [f"The run had {record['gaps']}."]
    else:
        sentences = ["The run had all subjects, tasks and coded frames of the data set."]
    for part, result in zip(finished_folds(folder), results, strict=True):
        num_missing = result.get("num_test_frames_missing")
        if num_missing:
            sentences.append(f"{part}: {num_missing:,} coded frames have no features and were not tested.")
    return sentences


def describe_missing_subjects(catalog: Catalog, dataset: str) -> list[str]:
    """Return a sentence that names the subjects whose frames the data set's index lacks; none if it lacks none."""
    frames = read_table_if_intact(catalog.index_path(dataset))
    missing = () if frames is None else coverage(frames, catalog.get_dataset(dataset).rules).missing_subjects
    return [f"Subjects without a frame: {join_first(missing)}."] if missing else []


def read_histories(folder: Path) -> dict[str, pd.DataFrame]:
    """Return losses and learning rate of a run's finished folds, one row per epoch, without damaged ones."""
    found = {}
    for part, fold in finished_folds(folder).items():
        try:
            history = read_history(fold)
        except (DataError, ValueError):
            continue
        if {"epoch", "loss"} <= set(history.columns):
            found[part] = history
    return found


def _results(folder: Path) -> Sequence[dict[str, Any]]:
    return [_result(fold / RESULT_NAME) for fold in finished_folds(folder).values()]


def _result(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:  # damaged; the scores are read from other files
        return {}
    return content if isinstance(content, dict) else {}

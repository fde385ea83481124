"""Compare the head's F1, averaged over seeds, with a linear probe on the same features and with "always positive".

    python benchmarks/head_against_probe.py --seeds 0 1 2

The probe is one logistic regression per action unit on the standardised spatial mean of F_a = (LF, HM * H1, HM * H2) of
the clean view, on the same folds, with and without balanced classes; the better of the two is compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.experiments import load_experiment
from pipeline.protocols import PARTS
from pipeline.report.run import read_report
from pipeline.training.loader import CachedFrames, evaluation_batches
from pipeline.training.metrics import compute_scores, confusion_counts
from pipeline.training.runs import TrainingRun, prepare_run
from pipeline.training.trainer import train_folds


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="bp4d-synthetic")
    parser.add_argument("--experiment", default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("var/head_against_probe.json"))
    arguments = parser.parse_args()

    run = prepare_run(arguments.experiment, dataset=arguments.dataset)
    pooled, frames = pooled_features(run)
    probes = {kind: probe_percent(run, pooled, frames, kind) for kind in (None, "balanced")}
    heads = {seed: head_percent(arguments, seed) for seed in arguments.seeds}
    result = {
        "dataset": arguments.dataset,
        "experiment": arguments.experiment,
        "always_positive": next(iter(heads.values()))["always_positive"],
        "probe": probes[None],
        "probe_balanced": probes["balanced"],
        "head": {seed: scores["f1"] for seed, scores in heads.items()},
    }
    mean = float(np.mean(list(result["head"].values())))
    result |= {
        "head_mean": mean,
        "head_minus_always_positive": mean - result["always_positive"],
        "head_minus_probe": mean - max(result["probe"], result["probe_balanced"]),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


def pooled_features(run: TrainingRun) -> tuple[np.ndarray, pd.DataFrame]:
    """Return spatial means of F_a (N, 3C) of the clean view, and their frames in the same order."""
    found = CachedFrames(run.cache, run.frames, aus=run.rules.aus)
    pooled = []
    for batch in evaluation_batches(run.cache, found, batch_size=64):
        maps = {name: tensor.float() for name, tensor in batch.features.items()}
        parts = (maps["lf"], maps["hm"] * maps["h1"], maps["hm"] * maps["h2"])
        pooled.append(np.concatenate([part.mean((2, 3)).numpy() for part in parts], 1))
    frames = run.frames.set_index("frame_id").loc[found.frame_ids].reset_index()
    return np.concatenate(pooled), frames


def probe_percent(run: TrainingRun, pooled: np.ndarray, frames: pd.DataFrame, class_weight: str | None) -> float:
    """Return the probe's F1 in percent, averaged over folds and action units."""
    counts = []
    for part in PARTS:
        is_test = (frames["part"] == part).to_numpy()
        labels = frames[[f"au_{au:02d}" for au in run.rules.aus]].to_numpy(np.int8)
        probabilities = np.zeros((is_test.sum(), len(run.rules.aus)))
        for i in range(len(run.rules.aus)):
            is_known = ~is_test & (labels[:, i] >= 0)
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight=class_weight))
            model.fit(pooled[is_known], labels[is_known, i])
            probabilities[:, i] = model.predict_proba(pooled[is_test])[:, 1]
        counts.append(
            confusion_counts(
                labels[is_test],
                probabilities,
                subjects=frames["subject"][is_test].to_numpy(),
                aus=run.rules.aus,
                part=part,
            )
        )
    return compute_scores(pd.concat(counts)).f1_percent


def head_percent(arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train the head with a seed, unless that run is finished; return its F1 and that of "always positive"."""
    config = arguments.experiment
    if seed != load_experiment(config).train.seed:
        path = Path("var") / f"{arguments.experiment}_seed{seed}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"base": arguments.experiment, "train": {"seed": seed}}))
        config = str(path)
    scores = read_report(*train_folds(config, dataset=arguments.dataset, device=arguments.device)).scores
    return {"f1": scores.f1_percent, "always_positive": scores.always_positive_percent}


if __name__ == "__main__":
    main()

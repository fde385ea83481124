"""Figures of trained heads: attention, kept connections, similarity of tokens, loss curves.

Written as PNG and SVG; legible in greyscale (lines differ in dashes, matrices show their numbers).
"""

# N frames, A action units, R branches, L transblocks, D channels
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from models.attention import AttentionDrop
from models.fan_trans import DeployedHead, FanTransHead
from models.head import branch_names, run_head
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.catalog import Catalog
from pipeline.errors import DataError, DataNotFoundError
from pipeline.faces.features import Network, load_network
from pipeline.fingerprint import find_weights
from pipeline.report.faces import read_faces
from pipeline.report.relations import correlation_distance, correlations
from pipeline.runtime.extras import optional_packages
from pipeline.runtime.progress import track
from pipeline.tables import au_column, probability_column
from pipeline.training.export import load_deployed, load_trained
from pipeline.training.loader import CachedFrames, evaluation_batches
from pipeline.training.metrics import THRESHOLD
from pipeline.training.run_files import DEPLOYED_NAME, finished_folds, read_history, read_predictions, read_run

with optional_packages("figures", for_what="drawing figures"):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from torchcam.methods import ScoreCAM

logger = logging.getLogger("fantrans")

MAX_FRAMES = 2000
"""Greatest number of tested frames per fold that the heads are run on."""

NUM_CAM_FACES = 5
_DPI = 200
_DASHES = ("-", "--", ":", "-.")
_BATCH_SIZE = 32


@dataclass(frozen=True)
class Probe:
    """Outputs of a run's heads on their tested frames, concatenated over the folds.

    labels_NA: 1, 0 or NaN for unknown. probabilities: (N, A) of each branch by name, the deployed one last. gates_RA:
    ensemble weights averaged over frames, None for a single branch. masks_LA: share of the folds that keep an action
    unit in a block of the deployed trunk, None without a learned drop. similarities: cosine similarities of all pairs
    of different tokens before the deployed classifier, None for the baseline. histories: one row per epoch, by fold.
    """

    name: str
    aus: tuple[int, ...]
    labels_NA: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    gates_RA: np.ndarray | None
    masks_LA: np.ndarray | None
    similarities: np.ndarray | None
    histories: Mapping[str, pd.DataFrame]


def write_figures(catalog: Catalog, folders: Mapping[str, Path], *, together: Path) -> list[Path]:
    """Draw runs, given by name and folder, each into its `figures/`, and all into one figure; return the files.

    together: path, without suffix, of the token similarities of all runs. Raises `DataNotFoundError` for a run without
    a finished fold, `StoreError` if its cache does not exist.
    """
    probes, paths = [], []
    for name, folder in folders.items():
        record, cache = _opened(catalog, folder)
        probe = probe_run(name, folder, record, cache)
        probes.append(probe)
        drawn = {"curves": draw_curves(probe), "correlations": draw_correlations(probe)}
        if probe.gates_RA is not None:
            drawn["gates"] = draw_gates(probe)
        if probe.masks_LA is not None:
            drawn["masks"] = draw_masks(probe)
        fold = next(iter(_folds(folder).values()))
        faces = representative_faces(fold, probe.aus)
        if faces:
            drawn["score_cam"] = draw_score_cam(catalog, fold, record, cache, faces)
        else:
            logger.warning("%s: no frame has all its active units detected, so Score-CAM is not drawn", folder)
        for title, figure in drawn.items():
            paths += _saved(figure, folder / "figures" / title)
    if any(probe.similarities is not None for probe in probes):
        paths += _saved(draw_similarities(probes), together)
    return paths


def _opened(catalog: Catalog, folder: Path) -> tuple[dict[str, Any], CacheReader]:
    record = read_run(folder)
    return record, open_cache(catalog.caches_folder(record["dataset"]) / record["cache"])


def _folds(folder: Path) -> dict[str, Path]:
    folds = finished_folds(folder)
    if not folds:
        raise DataNotFoundError(f"{folder} has no finished fold; run `fantrans train` with the same settings")
    return folds


@torch.inference_mode()
def probe_run(name: str, folder: Path, record: Mapping[str, Any], cache: CacheReader) -> Probe:
    """Run each fold's head, with all branches, on up to `MAX_FRAMES` of its tested frames, and collect the outputs.

    record: content of `run.json`. cache: the cache of the run. Labels are those that the fold was scored with.
    """
    aus = tuple(record["aus"])
    labels, probabilities, gates, masks, similarities = [], [], [], [], []
    histories: dict[str, pd.DataFrame] = {}
    names: tuple[str, ...] = ()
    for part, fold in _folds(folder).items():
        histories[part] = read_history(fold)
        head = load_trained(fold)
        tested = read_predictions(fold)
        found = CachedFrames(cache, tested.sample(min(len(tested), MAX_FRAMES), random_state=0), aus=aus)
        labels.append(found.labels_NA)
        with track(f"probe fold {part}", total=len(found.rows), unit="frames") as on_progress:
            for batch in evaluation_batches(cache, found, batch_size=_BATCH_SIZE):
                branches = run_head(head, batch.features).branches
                names = branch_names(head, len(branches))
                probabilities.append([logits.sigmoid().numpy() for logits in branches])
                if isinstance(head, FanTransHead):
                    f_c_BDHW = head.forward_features(batch.features)
                    if head.gate is not None:
                        gates.append(head.gate(f_c_BDHW).mean(0).numpy())
                    if head.shape.reads_tokens:
                        trunk = head.trunks[head.shape.branches[-1].trunk]
                        similarities.append(_pair_cosines(trunk(head.embedding(f_c_BDHW))))
                on_progress(len(batch.frame_ids))
        if isinstance(head, FanTransHead) and head.shape.attention_drop == "learned" and head.shape.reads_tokens:
            trunk = head.trunks[head.shape.branches[-1].trunk]
            drops = [module for module in trunk.modules() if isinstance(module, AttentionDrop)]
            masks.append(np.stack([drop.mask.numpy() for drop in drops]))
    labels_NA = np.concatenate(labels).astype(np.float32)
    labels_NA[labels_NA < 0] = np.nan
    return Probe(
        name,
        aus,
        labels_NA,
        {name: np.concatenate([each[i] for each in probabilities]) for i, name in enumerate(names)},
        np.mean(gates, 0) if gates else None,
        np.mean(masks, 0) if masks else None,
        np.concatenate(similarities) if similarities else None,
        histories,
    )


def _pair_cosines(tokens_BAD: Tensor) -> np.ndarray:
    unit_BAD = nn.functional.normalize(tokens_BAD, dim=2)
    cosines_BAA = unit_BAD @ unit_BAD.transpose(1, 2)
    num_aus = cosines_BAA.shape[1]
    rows, columns = torch.triu_indices(num_aus, num_aus, offset=1)
    return cosines_BAA[:, rows, columns].clamp(-1, 1).flatten().numpy()


def draw_curves(probe: Probe) -> Figure:
    """Draw the losses over epochs, one line per fold."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, column, title in zip(
        axes, ("loss_cls", "loss_kd"), ("classification loss", "distillation loss"), strict=True
    ):
        for (part, history), dash in zip(probe.histories.items(), _DASHES, strict=False):
            axis.plot(history["epoch"] + 1, history[column], dash, color="black", lw=1.4, label=f"tested on {part}")
        axis.set(xlabel="epoch", title=title, ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    return figure


def draw_correlations(probe: Probe) -> Figure:
    """Draw the correlations of the labels and of each branch's probabilities, with the distance of the two (Fig. 5)."""
    matrices = {"labels": correlations(probe.labels_NA)}
    matrices |= {name: correlations(values) for name, values in probe.probabilities.items()}
    figure = Figure(figsize=(4.3 * len(matrices), 4.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(matrices), sharey=True))
    names = [str(au) for au in probe.aus]
    for axis, (title, matrix) in zip(axes, matrices.items(), strict=True):
        axis.imshow(matrix, cmap="cividis", vmin=-1, vmax=1)
        for (i, j), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                axis.text(
                    j,
                    i,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="black" if value > 0 else "white",
                )
        distance = "" if title == "labels" else f", distance {correlation_distance(matrices['labels'], matrix):.4f}"
        axis.set(title=f"{title}{distance}", xlabel="AU")
        axis.set_xticks(range(len(names)), names, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
    axes[0].set_ylabel("AU")
    figure.colorbar(axes[0].images[0], ax=list(axes), label="correlation (in cells: x 100)", shrink=0.8)
    return figure


def draw_gates(probe: Probe) -> Figure:
    """Draw the average weight of each branch in the ensemble, by action unit (Eq. 7)."""
    assert probe.gates_RA is not None
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    bottom = np.zeros(len(probe.aus))
    for (name, weights_A), grey, hatch in zip(
        zip(probe.probabilities, probe.gates_RA, strict=True), ("0.25", "0.85", "0.55"), ("", "//", ".."), strict=False
    ):
        axis.bar(
            range(len(probe.aus)),
            weights_A,
            bottom=bottom,
            color=grey,
            hatch=hatch,
            edgecolor="black",
            lw=0.6,
            label=name,
        )
        bottom += weights_A
    axis.axhline(1 / len(probe.gates_RA), color="white", lw=1, ls="--")
    axis.set_xticks(range(len(probe.aus)), [f"AU{au}" for au in probe.aus])
    axis.set(ylabel="weight in the ensemble", ylim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_masks(probe: Probe) -> Figure:
    """Draw which action units each block of the deployed trunk attends to, as a share of the folds (Fig. 3)."""
    assert probe.masks_LA is not None
    figure = Figure(figsize=(7, 0.45 * len(probe.masks_LA) + 1.2), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(probe.masks_LA, cmap="Greys_r", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(probe.masks_LA):
        axis.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=7, color="black" if value > 0.5 else "white")
    axis.set_xticks(range(len(probe.aus)), [f"AU{au}" for au in probe.aus], fontsize=8)
    axis.set_yticks(range(len(probe.masks_LA)), [f"block {i + 1}" for i in range(len(probe.masks_LA))], fontsize=8)
    figure.colorbar(image, ax=axis, label="kept in (share of folds)")
    return figure


def draw_similarities(probes: Sequence[Probe]) -> Figure:
    """Draw the distribution of the cosine similarity of different action units' tokens, one ridge per run (Fig. 6)."""
    shown = [(probe.name, probe.similarities) for probe in probes if probe.similarities is not None]
    figure = Figure(figsize=(6, 0.5 * len(shown) + 1), layout="constrained")
    axis = figure.subplots()
    bins = np.linspace(-1, 1, 101)
    middles = (bins[1:] + bins[:-1]) / 2
    for i, (_, values) in enumerate(shown):
        heights, _ = np.histogram(values, bins)
        heights = 0.9 * heights / heights.max()
        axis.fill_between(middles, -i, heights - i, color="0.8")
        axis.plot(middles, heights - i, color="black", lw=1)
        mean = float(values.mean())
        axis.plot([mean, mean], [-i, np.interp(mean, middles, heights) - i], "--", color="black", lw=1)
        axis.annotate(f"mean {mean:.3f}", (1, -i + 0.3), xytext=(6, 0), textcoords="offset points", fontsize=8)
    axis.set_yticks([-i for i in range(len(shown))], [name for name, _ in shown], fontsize=8)
    axis.set(xlabel="cosine similarity of two action units' tokens", xlim=(-1, 1))
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    return figure


class _ImageToLogits(nn.Module):
    """Feature network and head in one module, since Score-CAM masks the image."""

    def __init__(self, features: Network, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features.taps(images)
        if "hm" in maps:
            maps["hm"] = maps["hm"].sum(1, keepdim=True)
        logits_BA: Tensor = self.head(maps)
        return logits_BA


def draw_score_cam(
    catalog: Catalog, fold: Path, record: Mapping[str, Any], cache: CacheReader, chosen: Sequence[tuple[str, list[int]]]
) -> Figure:
    """Draw frames of a fold's tested part, and the Score-CAM of F_c (4 x 4) in its deployed head (Fig. 1).

    In a head of one's own it is that of the last convolution. chosen: frame_id and active units of each face, see
    `representative_faces`. A face's map is averaged over its active units. Raises `DataError` if the catalog lacks the
    weights of the cache.
    """
    model = load_deployed(fold / DEPLOYED_NAME)
    network = _ImageToLogits(_load_features(catalog, cache), model.head).eval()
    faces = read_faces(catalog, record["dataset"], cache, [frame_id for frame_id, _ in chosen])
    figure = Figure(figsize=(2 * len(chosen), 4.6), layout="constrained")
    axes = np.atleast_2d(figure.subplots(2, len(chosen)).T)
    with ScoreCAM(network, _cam_layer(network), batch_size=16) as cam:
        for (_, aus), face, (top, below) in zip(chosen, faces, axes, strict=True):
            image = torch.from_numpy(face).permute(2, 0, 1)[None].float() / 255
            maps = []
            for au in aus:
                with torch.inference_mode():
                    network(image)
                maps.append(cam(model.aus.index(au))[0][0])
            shown = nn.functional.interpolate(torch.stack(maps).mean(0)[None, None], face.shape[:2], mode="bicubic")
            top.imshow(face)
            below.imshow(face @ [0.3, 0.6, 0.1], cmap="gray")
            below.imshow(shown[0, 0].clamp(0, 1).numpy(), cmap="inferno", alpha=0.55)
            below.set_xlabel(", ".join(f"AU{au}" for au in aus), fontsize=8)
            for axis in (top, below):
                axis.set_xticks([])
                axis.set_yticks([])
    return figure


def _cam_layer(network: _ImageToLogits) -> nn.Module:
    """Return F_c's module in a head of the paper, else the last convolution of the head, or of the whole network."""
    if isinstance(network.head, DeployedHead):
        return network.head.conv
    convolutions = [each for each in network.head.modules() if isinstance(each, nn.Conv2d)]
    return [*(each for each in network.modules() if isinstance(each, nn.Conv2d)), *convolutions][-1]


def representative_faces(fold: Path, aus: tuple[int, ...]) -> list[tuple[str, list[int]]]:
    """Return up to `NUM_CAM_FACES` pairs of frame_id and active units, highest probability first.

    Frames have one to four active units, all of them detected; subjects and sets of active units are all different.
    """
    predictions = read_predictions(fold)
    labels = predictions[[au_column(au) for au in aus]].to_numpy(np.float32)
    found = predictions[[probability_column(au) for au in aus]].to_numpy()
    is_active = (labels == 1) & (found >= THRESHOLD)
    num_active = is_active.sum(1)
    is_representative = (num_active == (labels == 1).sum(1)) & (num_active >= 1) & (num_active <= 4)
    certainty = np.where(is_active, found, 1).min(1)
    order = np.argsort(-np.where(is_representative, certainty, -1))
    subjects: set[str] = set()
    chosen: dict[tuple[int, ...], str] = {}
    for i in order[: int(is_representative.sum())]:
        active = tuple(au for au, is_on in zip(aus, is_active[i], strict=True) if is_on)
        subject = predictions["subject"].iloc[i]
        if subject not in subjects and active not in chosen and len(chosen) < NUM_CAM_FACES:
            subjects.add(subject)
            chosen[active] = predictions["frame_id"].iloc[i]
    return [(frame_id, list(active)) for active, frame_id in chosen.items()]


def _load_features(catalog: Catalog, cache: CacheReader) -> Network:
    features = cache.document["features"]
    entry = find_weights(features, catalog)
    if entry is None:
        raise DataError(
            f"{cache.folder} was computed with weights that are not in the catalog (sha256 "
            f"{features['sha256'][:12]}...); add them"
        )
    return load_network(entry, "cpu")


def _saved(figure: Figure, stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=_DPI)
    return paths

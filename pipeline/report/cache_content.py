"""What the page of a cache shows, as plain values: coverage, failures, fidelity, bytes, revisions, damage.

Everything is read from tables, manifests and one small array; no map is read.
"""

# N frames, M maps
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cache.codecs import RELATIVE_L2
from pipeline.cache.crops import HAS_FACE
from pipeline.cache.format import view_group
from pipeline.catalog import Catalog
from pipeline.errors import DataError, FantransError, StoreError
from pipeline.refresh.caches import CacheSummary, list_caches, refresh_command
from pipeline.report.rendering import Cell, Rows, count_cell, number_cell, utc_minute
from pipeline.store.hashing import hash_document
from pipeline.store.mirror import has_copy
from pipeline.store.plan import NO_ROW
from pipeline.store.reader import StoreReader
from pipeline.store.revisions import load_revision, manifest_name, revision_numbers
from pipeline.store.verify import Damage, verify_store
from pipeline.tables import Status, read_table_if_intact

NOT_LISTED = "not in the cache"
"""Status of a frame that the index lists and the cache does not: it is newer than the last refresh."""

REASONS = {
    Status.NO_FACE: "The subject's face was not found in the image.",
    Status.IMPLAUSIBLE: "A face was found, but its box is not that of a whole, upright face.",
    Status.UNREADABLE: "There is a file, and it or its frame cannot be decoded.",
    Status.NO_SOURCE: "There is no image file or video.",
    NOT_LISTED: "The index lists the frame, the cache does not: the next refresh computes it.",
}
STAGES = {"cached": "is_cached", "with a box": "has_box", "with an image": "has_image"}
"""What the map of coverage shows, and the columns that count it."""
MAX_SUBJECTS, MAX_DAMAGES, NUM_EXAMPLES = 150, 50, 12
"""Greatest numbers of subjects in the map, of damaged files in their table, of examples per reason."""

_SAMPLED_BLOCKS = 16


@dataclass(frozen=True)
class CacheFacts:
    """One revision of a cache, and what the data set's tables know of its frames.

    frames: see `frame_table`. boxes: `BOX_COLUMNS` of the cache's detector, None if they are not on this machine.
    damages: what a check of all files found, None if it was left out. others: all caches of the data set.
    """

    catalog: Catalog
    dataset: str
    store: StoreReader
    frames: pd.DataFrame
    boxes: pd.DataFrame | None
    boxes_path: Path
    has_index: bool
    damages: Sequence[Damage] | None
    others: Sequence[CacheSummary]

    @property
    def folder(self) -> Path:
        """Folder of the cache, named by its fingerprint."""
        return self.store.folder

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the cache."""
        return self.folder.name

    @cached_property
    def summary(self) -> CacheSummary:
        """The cache's row of `fantrans cache ls`."""
        known = next(each for each in self.others if each.folder == self.folder)
        return known._replace(refresh_command=refresh_command(self.catalog, self.dataset, self.fingerprint))


def read_cache_facts(catalog: Catalog, dataset: str, folder: Path, *, checks_files: bool = True) -> CacheFacts:
    """Return what is known of a cache; raises `StoreError` if it has no finished revision.

    checks_files: whether the size of every file is compared, as `fantrans cache verify` does.
    """
    others = list_caches(catalog, dataset, names_commands=False)  # before the reader below pins it
    store = StoreReader(folder)
    index = read_table_if_intact(catalog.index_path(dataset))
    boxes_path = catalog.work_folder(dataset) / f"boxes-{_boxes_hash(store.document)}.parquet"
    boxes = read_table_if_intact(boxes_path)
    return CacheFacts(
        catalog=catalog,
        dataset=dataset,
        store=store,
        frames=frame_table(store.listed, index, boxes),
        boxes=boxes,
        boxes_path=boxes_path,
        has_index=index is not None,
        damages=verify_store(folder, is_deep=False) if checks_files else None,
        others=others,
    )


def _boxes_hash(document: Mapping[str, Any]) -> str:
    """Return the fingerprint of the boxes that a cache's crops were cut from; see `fingerprint.boxes_document`."""
    return hash_document({"kind": "boxes", **{name: document.get(name) for name in ("version", "detector")}})


# ------------------------------------------------------------------------------------------------------------ coverage


def frame_table(listed: pd.DataFrame, index: pd.DataFrame | None, boxes: pd.DataFrame | None) -> pd.DataFrame:
    """Return one row per frame of the index and of the cache, sorted by name.

    frame_id, subject, task, part, sequence, status, flaw, source_file, source_frame (None and -1 if not known), and
    what was reached: has_image, has_box, is_cached. listed: the frames of the revision, with their rows.
    """
    of_cache = listed[["frame_id", "row", "part"]].assign(status=listed.get("status", Status.OK.value))
    if index is None:
        frames = of_cache.assign(source_file=None, source_frame=-1)
    else:
        known = index[["frame_id", "subject", "task", "part", "source_file", "source_frame"]]
        frames = known.merge(of_cache.rename(columns={"part": "old_part"}), on="frame_id", how="outer")
        frames["part"] = frames["part"].fillna(frames.pop("old_part"))
        frames["source_file"] = frames["source_file"].astype(object).where(frames["source_file"].notna(), None)
        frames["source_frame"] = frames["source_frame"].fillna(-1).astype(int)
    frames["sequence"] = frames["frame_id"].str.rpartition("/")[0]
    subject, _, task = (frames["sequence"].str.rpartition("/")[i] for i in range(3))
    for name, of_name in (("subject", subject), ("task", task)):
        frames[name] = frames[name].fillna(of_name) if name in frames else of_name
    frames["is_cached"] = frames.pop("row").fillna(NO_ROW) != NO_ROW
    frames["status"] = frames["status"].fillna(NOT_LISTED)
    frames["has_image"] = ~frames["status"].isin((Status.NO_SOURCE, Status.UNREADABLE)) & (frames["source_file"] != "")
    frames["has_box"] = frames["status"].isin((*HAS_FACE, Status.IMPLAUSIBLE))
    frames["flaw"] = ""
    if boxes is not None:
        of_frame = boxes.set_index("frame_id").reindex(frames["frame_id"])
        frames["has_box"] = of_frame["x1"].notna().to_numpy()
        frames["flaw"] = of_frame["flaw"].fillna("").to_numpy()
    return frames.sort_values("frame_id", key=lambda names: names.map(_natural), ignore_index=True)


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key by which T2 comes before T10."""
    words = re.split(r"(\d+)", name)
    return tuple((1, int(word)) if word.isdigit() else (0, word) for word in words)


def coverage_map(frames: pd.DataFrame) -> dict[str, Any]:
    """Return subjects, tasks and, per stage, percent and text of each cell; with many subjects, the least cached ones.

    A subject without a task has None.
    """
    cached = frames.groupby("subject")["is_cached"].mean()
    subjects = sorted(cached.sort_values(kind="stable").index[:MAX_SUBJECTS], key=_natural)
    tasks = sorted(frames["task"].unique(), key=_natural)
    found: dict[str, Any] = {"subjects": subjects, "tasks": tasks, "stages": {}}
    grouped = frames.groupby(["subject", "task"])
    for name, column in STAGES.items():
        counts = grouped[column].agg(["sum", "count"]).reindex(pd.MultiIndex.from_product([subjects, tasks]))
        share = (100 * counts["sum"] / counts["count"]).to_numpy().reshape(len(subjects), len(tasks))
        texts = ["" if np.isnan(count) else f"{total:,.0f} of {count:,.0f}" for total, count in counts.to_numpy()]
        found["stages"][name] = {
            "percent": [[None if np.isnan(value) else round(float(value), 1) for value in row] for row in share],
            "texts": np.array(texts, object).reshape(share.shape).tolist(),
        }
    return found


def coverage_table(frames: pd.DataFrame, by: str) -> Rows:
    """Return one row per subject or task (`by`): sequences, and frames with an image, with a box and in the cache."""
    rows = []
    for name, group in sorted(frames.groupby(by), key=lambda item: _natural(str(item[0]))):
        counts = [group["sequence"].nunique(), len(group), *(int(group[column].sum()) for column in _REACHED)]
        share = number_cell(100 * counts[-1] / len(group))
        part = [Cell(", ".join(sorted(set(group["part"].dropna()))))] if by == "subject" else []
        rows.append([Cell(str(name)), *part, *map(count_cell, counts), share])
    part_name = ["part"] if by == "subject" else []
    return [by, *part_name, "sequences", "frames", "with an image", "with a box", "cached", "cached, %"], rows


_REACHED = ("has_image", "has_box", "is_cached")


def _by_reason(frames: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the frames without features by their status and flaw, such as "implausible: small"; the most first."""
    failed = frames[~frames["is_cached"]]
    reason = failed["status"].where(failed["flaw"] == "", failed["status"] + ": " + failed["flaw"])
    return {str(name): failed[reason == name] for name in reason.value_counts().index}


def failure_table(frames: pd.DataFrame) -> Rows:
    """Return one row per reason why frames have no features: how many, and what it means."""
    rows = []
    for name, group in _by_reason(frames).items():
        share = number_cell(100 * len(group) / len(frames))
        meaning = REASONS.get(name.partition(": ")[0], "")
        rows.append([Cell(name), count_cell(len(group)), share, Cell(meaning)])
    return ["reason", "frames", "% of all", "meaning"], rows


def examples(frames: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return up to `NUM_EXAMPLES` frames without features per reason, of as many sequences as possible."""
    found = {}
    for name, group in _by_reason(frames).items():
        turn = group.groupby("sequence").cumcount()
        found[name] = group.loc[turn.sort_values(kind="stable").index[:NUM_EXAMPLES]].sort_index()
    return found


# ---------------------------------------------------------------------------------------- fidelity, bytes, revisions


def fidelity_table(store: StoreReader) -> tuple[Rows, str]:
    """Return one row per map: its relative L2 error as the manifest states it, and over a sample of rows; and a note.

    The sample is of the clean view, of up to 16 blocks. No row for the profile exact, whose maps are stored in fp16.
    """
    stated = store.manifest["provenance"].get("fidelity") or {"relative_l2": {}}
    if RELATIVE_L2 not in {spec["name"] for spec in store.manifest["arrays"]}:
        return ([], []), "The profile is exact: maps are stored in fp16 as the network gives them."
    rows = _sampled_rows(store)
    try:
        errors_NM = store.read_rows(RELATIVE_L2, rows, group=view_group(0)).astype(np.float64)
    except StoreError as error:
        return ([], []), f"The stored errors cannot be read: {error}."
    names = store.spec(RELATIVE_L2).attributes["of"]
    cells = []
    for name, values_N in zip(names, errors_NM.T, strict=True):
        mean = stated["relative_l2"].get(name, float("nan"))
        ends = np.quantile(values_N, [0.05, 0.5, 0.95, 1]) if len(values_N) else np.full(4, np.nan)
        cells.append([Cell(name), number_cell(mean, ".4f"), *(number_cell(value, ".4f") for value in ends)])
    note = (
        f"Stated: the mean over up to {stated.get('num_frames', 0):,} frames at the last refresh. The other columns: "
        f"{len(rows):,} frames of this revision, clean view."
    )
    cost = (stated.get("f1") or {}).get("trained_on_it")
    if cost:
        low, high = cost["interval"]
        note += f" In F1: {cost['points']:+.2f} points ({low:+.2f} to {high:+.2f}) on {stated['f1']['dataset']}."
    return (["map", "stated", "5 %", "median", "95 %", "greatest"], cells), note


def _sampled_rows(store: StoreReader) -> np.ndarray:
    rows: np.ndarray = np.sort(store.index["row"].to_numpy())
    blocks = np.unique(rows // store.block_rows)
    chosen = blocks[np.linspace(0, len(blocks) - 1, min(len(blocks), _SAMPLED_BLOCKS)).astype(int)]
    return rows[np.isin(rows // store.block_rows, chosen)]


def bytes_table(store: StoreReader) -> Rows:
    """Return one row per array and one for all: bytes on disk, per frame and view, their share, and how they packed."""
    revision = load_revision(store.folder, store.revision)
    assert revision is not None
    totals: dict[str, int] = {}
    for files in revision.records.values():
        for name, record in files.items():
            totals[name] = totals.get(name, 0) + record.num_bytes
    num_values = max(1, len(store.index) * len(store.groups))
    num_all = max(1, sum(totals.values()))
    rows = []
    for name, total in sorted(totals.items(), key=lambda item: -item[1]):
        spec = store.spec(name)
        shape = " x ".join(map(str, spec.row_shape))
        packed = number_cell(100 * total / (spec.row_bytes * num_values), ".0f")
        sizes = [Cell(f"{total / 1e6:,.1f}", float(total)), Cell(f"{total / num_values:,.0f}", total / num_values)]
        rows.append([Cell(name), Cell(f"{spec.dtype} {shape}"), *sizes, number_cell(100 * total / num_all), packed])
    total = sum(totals.values())
    sizes = [Cell(f"{total / 1e6:,.1f}", float(total)), Cell(f"{total / num_values:,.0f}", total / num_values)]
    rows.append([Cell("all"), Cell(""), *sizes, number_cell(100.0), Cell("")])
    return ["array", "values of a frame", "MB", "bytes per frame and view", "share, %", "of uncompressed, %"], rows


def revision_table(folder: Path) -> tuple[Rows, str]:
    """Return one row per revision on disk, the newest first, and a note on those that are gone or damaged."""
    rows, faults = [], []
    numbers = revision_numbers(folder)
    for number in reversed(numbers):
        try:
            revision = load_revision(folder, number)
        except StoreError as error:
            faults.append(str(error))
            continue
        assert revision is not None
        path, manifest = folder / manifest_name(number), revision.manifest
        provenance = manifest["provenance"]
        cells = [Cell(str(number), float(number)), Cell(_written_at(path))]
        cells += [count_cell(manifest[name]) for name in ("num_frames", "num_rows")]
        cells += [count_cell(len(revision.groups)), Cell(f"{manifest['num_bytes'] / 1e6:,.1f}", manifest["num_bytes"])]
        versions = provenance.get("versions", {})
        cells += [Cell(str(provenance.get("device", "-"))), Cell(str(versions.get("fantrans", "-")))]
        rows.append(cells)
    gone = [number for number in range(1, (numbers or [1])[-1]) if not has_copy(folder, manifest_name(number))]
    notes = [f"{len(gone)} older revisions were pruned."] if gone else []
    columns = ["revision", "written at", "frames", "with features", "views", "MB", "device", "fantrans"]
    return (columns, rows), " ".join([*notes, *faults])


def _written_at(path: Path) -> str:
    return utc_minute(path.stat().st_mtime) if path.is_file() else "-"


# ---------------------------------------------------------------------------------------------- damage and staleness


def damage_table(damages: Sequence[Damage]) -> Rows:
    """Return one row per damaged file: what is wrong, and how many frames cannot be read."""
    rows = [[Cell(damage.message), count_cell(len(damage.frame_ids))] for damage in damages[:MAX_DAMAGES]]
    return ["damage", "frames"], rows


def state_sentences(facts: CacheFacts) -> list[str]:
    """Return what is known of damage and staleness, one sentence each; none if the cache is intact and up to date."""
    found, summary = [], facts.summary
    if summary.num_damaged:
        found.append(f"{summary.num_damaged:,} units (one view of one block) are marked as damaged.")
    if facts.damages:
        num_frames = len({name for damage in facts.damages for name in damage.frame_ids})
        found.append(f"{len(facts.damages):,} files are damaged or missing; {num_frames:,} frames cannot be read.")
    elif summary.has_damaged_tables:
        found.append("A table, a manifest, the fingerprint or the pointer is damaged in one of its two copies.")
    if facts.has_index:
        num_new = int((facts.frames["status"] == NOT_LISTED).sum())
        num_gone = int(facts.frames["source_file"].isna().sum())
        if num_new:
            found.append(f"The data set's index lists {num_new:,} frames that the cache does not have.")
        if num_gone:
            found.append(f"The cache lists {num_gone:,} frames that the data set's index does not have.")
    crops = facts.store.manifest["provenance"].get("crops")
    newest = None if crops is None else _newest_revision(facts.catalog.crops_folder(facts.dataset) / crops["folder"])
    if crops is not None and newest is not None and newest > crops["revision"]:
        found.append(f"Its crops are at revision {newest}; the cache was computed from revision {crops['revision']}.")
    try:
        facts.catalog.check_labels(facts.dataset)
    except (FantransError, OSError) as error:
        if isinstance(error, DataError) and facts.has_index:
            found.append(f"{error}.")
    return found


def _newest_revision(folder: Path) -> int | None:
    try:
        revision = load_revision(folder)
    except StoreError:
        return None
    return None if revision is None else revision.number


def cache_table(caches: Sequence[CacheSummary], links: Mapping[str, str]) -> Rows:
    """Return one row per cache: fingerprint, profile, frames, views, bytes, per frame and view, state.

    links: relative addresses of pages by fingerprint.
    """
    rows = []
    for cache in caches:
        per_view = cache.size_bytes / max(1, cache.num_frames * cache.num_views)
        sizes = [Cell(f"{cache.size_bytes / 1e6:,.1f}", cache.size_bytes), Cell(f"{per_view / 1e3:,.1f}", per_view)]
        counts = [count_cell(cache.num_frames), count_cell(cache.num_views)]
        name = Cell(cache.fingerprint, link=links.get(cache.fingerprint, ""))
        rows.append([name, Cell(f"{cache.weights} {cache.profile}"), *counts, *sizes, Cell(cache.state)])
    return ["cache", "made with", "frames", "views", "MB", "kB per frame and view", "state"], rows

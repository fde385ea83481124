"""Maintain stores on a schedule: verify their bytes, prune what no revision or reader needs."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_table_artifact

from flows.tasks import fantrans_flow, fantrans_task
from pipeline.catalog import load_catalog
from pipeline.errors import StoreError
from pipeline.refresh import maintenance as stages
from pipeline.runtime.device import choose_device


@fantrans_task(task_run_name="verify {dataset}")
def verify_dataset(dataset: str, *, deep: bool, device: str) -> list[dict[str, Any]]:
    """Verify a data set's stores; return one row per store: damaged files, frames that they affect, and the first."""
    found = stages.verify_caches(load_catalog(), dataset, is_deep=deep, device=device)
    return [
        {
            "data set": dataset,
            "store": folder.name,
            "damaged": len(damages),
            "frames": len({name for damage in damages for name in damage.frame_ids}),
            "first": str(damages[0]) if damages else "",
        }
        for folder, damages in found.items()
    ]


@fantrans_task(task_run_name="prune {dataset}")
def prune_dataset(dataset: str, *, grace_hours: float) -> list[dict[str, Any]]:
    """Prune a data set's stores; return one row per store: what was freed."""
    pruned = stages.prune_stores(load_catalog(), dataset, grace_s=grace_hours * 3600)
    return [{"data set": dataset, "store": folder.name, "freed": str(result)} for folder, result in pruned.items()]


@fantrans_flow("verify-cache", verb="verify")
def verify_cache(dataset: str | None = None, deep: bool = True, device: str = "auto") -> None:
    """Verify the crops and caches of one data set, or of all; fails if any are damaged. A refresh repairs them."""
    device = choose_device(device) if deep else "cpu"
    rows = [
        row for name in load_catalog().dataset_names(dataset) for row in verify_dataset(name, deep=deep, device=device)
    ]
    create_table_artifact(rows, key="verified-caches", description="What is damaged in each store")
    damaged = [f"{row['data set']}/{row['store']}" for row in rows if row["damaged"]]
    if damaged:
        raise StoreError(
            f"{len(damaged)} of {len(rows)} stores are damaged ({', '.join(damaged)}); "
            "run `fantrans refresh` with their settings to repair them"
        )


@fantrans_flow("prune-cache", verb="prune")
def prune_cache(dataset: str | None = None, grace_hours: float = 24.0) -> None:
    """Free dead rows, old revisions and orphaned files of one data set, or of all."""
    rows = [
        row for name in load_catalog().dataset_names(dataset) for row in prune_dataset(name, grace_hours=grace_hours)
    ]
    create_table_artifact(rows, key="pruned-caches", description="What was freed in each store")

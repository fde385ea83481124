"""The shipped catalog, with one small rendered data set, its own roots, and experiments."""

import yaml

from pipeline.catalog import CATALOG_FILE

NUM_FRAMES = 12 * 8
RENDERED = {"num_subjects": 12, "num_tasks": 8, "num_frames": 1, "size_px": 256, "seed": 5}


SMALL_DEMO = {"num_subjects": 12, "num_tasks": 4, "num_frames": 1, "size_px": 256, "seed": 5}
"""Settings of a `demo_quick` that takes a third of the time."""


def write_small_demo(folder):
    """Write FOLDER/data_catalog.yaml, a catalog whose `demo_quick` is smaller and lies, as all else, in FOLDER."""
    content = yaml.safe_load(CATALOG_FILE.read_text())
    content["roots"] = {"work": "work", "cache": "cache", "runs": "runs"}
    content["datasets"] = {"demo_quick": content["datasets"]["demo_quick"] | {"root": "raw", "rendered": SMALL_DEMO}}
    del content["weights"]  # the shipped ones are known in every catalog
    path = folder / "data_catalog.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_small_catalog(folder, *, dataset, num_tasks=8, **num_views):
    """Write FOLDER/data_catalog.yaml and, for each experiment, FOLDER/NAME.yaml; the first is the data set's own.

    num_tasks: each adds 12 frames. num_views: number of views by experiment. The data set `undisturbed` has the same
    frames. Returns the catalog.
    """
    for name, views in num_views.items():
        (folder / f"{name}.yaml").write_text(
            f"base: demo_quick\ncache: {{views: {{num_views: {views}}}}}\n"
            "train: {num_epochs: 1, batch_size: 16}\nparts: [P1, P2]\n"
        )
    content = yaml.safe_load(CATALOG_FILE.read_text())
    content["roots"] = {"work": "work", "cache": "cache", "runs": "runs"}
    entry = {
        "root": "raw",
        "layout": "bp4d",
        "protocol": "rendered_bp4d",
        "experiment": str(folder / f"{next(iter(num_views))}.yaml"),
        "rendered": RENDERED | {"num_tasks": num_tasks},
        "max_lost_frac": 1,
    }
    content["datasets"] = {dataset: entry, "undisturbed": entry}
    del content["weights"]  # the shipped ones are known in every catalog
    path = folder / "data_catalog.yaml"
    path.write_text(yaml.safe_dump(content))
    return path

"""Draw the README's figure: a demo frame with box and landmarks, its cached maps, and the F1 of the demo's report.

fantrans demo && python benchmarks/figures.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from models.fan import decode_landmarks
from pipeline.cache.crops import CropReader, crops_format
from pipeline.catalog import load_catalog
from pipeline.datasets.images import read_image
from pipeline.faces.features import load_fan
from pipeline.faces.views import ViewParams, render_view
from pipeline.fingerprint import crops_document
from pipeline.refresh.job import prepare_refresh
from pipeline.report.run import read_report
from pipeline.training.runs import prepare_run

mpl.use("Agg")
from matplotlib import pyplot as plt

OUT = Path("docs/figures/main_job.png")
FRAME_ID = "M001/T1"


def main() -> None:
    """Draw and write the figure."""
    run = prepare_run("demo", dataset="bp4d-synthetic")
    job = prepare_refresh("bp4d-synthetic")
    catalog = load_catalog()
    row = run.frames[run.frames["frame_id"].str.startswith(FRAME_ID)].iloc[0]
    frame = read_image(job.entry.root / row["source_file"])
    assert frame is not None
    format = crops_format(crops_document(job.config, catalog), job.config.crop)
    crops = CropReader(format.folder_in(job.catalog.crops_folder(job.dataset)))
    crop_row = crops.index.set_index("frame_id")["row"][row["frame_id"]]
    crop, affine = crops.read_crops([crop_row])[0], crops.read_affines([crop_row])[0]
    face = render_view(crop, ViewParams(), view_px=job.config.crop.size_px)
    fan = load_fan(catalog.get_weights(job.config.features.weights), "cpu")
    with torch.inference_mode():
        heatmaps = fan(torch.from_numpy(face).permute(2, 0, 1)[None].float() / 255)[-1]
    points = decode_landmarks(heatmaps)[0].numpy()
    rows = run.cache.read(run.cache.index.set_index("frame_id")["row"][[row["frame_id"]]].to_numpy())
    stored = run.cache.codec.decode({name: torch.from_numpy(values) for name, values in rows.items()})

    figure = plt.figure(figsize=(12, 6.2), dpi=110)
    grid = figure.add_gridspec(2, 4, height_ratios=(1, 0.9), hspace=0.28, wspace=0.08)
    side = job.config.crop.size_px
    corners = (np.array([[0, 0], [side - 1, side - 1]]) + (crop.shape[0] - side) / 2) @ affine[:, :2].T + affine[:, 2]
    axes = [figure.add_subplot(grid[0, i]) for i in range(4)]
    axes[0].imshow(frame)
    axes[0].add_patch(plt.Rectangle(corners[0], *(corners[1] - corners[0]), fill=False, color="lime", lw=2))
    axes[0].set_title(f"raw frame {row['frame_id']}", fontsize=10)
    axes[1].imshow(face)
    axes[1].scatter(points[:, 0], points[:, 1], s=7, c="lime")
    axes[1].set_title("crop, 68 landmarks of the FAN", fontsize=10)
    axes[2].imshow(stored["h2"][0].float().abs().mean(0), cmap="magma")
    axes[2].set_title("cached H2 (mean over channels)", fontsize=10)
    axes[3].imshow(stored["hm"][0].float().sum(0), cmap="viridis")
    axes[3].set_title("cached heatmap sum", fontsize=10)
    for axis in axes:
        axis.set_axis_off()

    report = read_report(run.folder)
    table = report.table()
    axis = figure.add_subplot(grid[1, :])
    places = np.arange(len(table))
    axis.bar(places - 0.2, table["f1_percent"], 0.4, label="FAN-Trans head", color="#2b6cb0")
    axis.bar(places + 0.2, table["always_positive_percent"], 0.4, label="always positive", color="#cbd5e0")
    axis.set_xticks(places, table["au"])
    axis.set_ylabel("F1, %")
    axis.set_ylim(0, 100)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=2, loc="upper left", fontsize=9)
    axis.set_title("per-AU F1 of the demo, mean over three subject-exclusive folds", fontsize=10)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT, bbox_inches="tight")


if __name__ == "__main__":
    main()

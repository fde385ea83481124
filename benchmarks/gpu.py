"""What one GPU does, beside peers on it in the same run: extraction by network, a refresh by processes, heads.

    fantrans refresh bp4d-synthetic --device cuda && python benchmarks/gpu.py --out var/gpu.json

networks: views a second from crops in memory to rows of the profile `standard` in memory, by the FAN's width, stacks
and precision (random weights: speed does not depend on them). Beside it face-alignment's own network on batches of the
same size, its heatmaps brought back: in fp32, and as torch is set by default, which rounds convolutions to TF32.
refresh: extraction of a data set's crops to a published cache, by Dask workers that share the GPU, with the digest of
its bytes. train: forward, backward and step of a two-branch head on a batch that is at hand, beside the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cluster
import face_alignment.models
import numpy as np
import torch
from throughput import frames_per_s, training

from models.fan import FAN, map_shapes
from pipeline.cache.codecs import make_codec
from pipeline.features import extract_features, frozen
from pipeline.runs import TrainingRun, prepare_run

DEVICE = torch.device("cuda")
NUM_CROPS, BATCH_CROPS = 256, 64
NETWORKS = {"fan-64": (64, 2), "fan-128": (128, 2), "2dfan2": (256, 2), "2dfan4": (256, 4)}


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="bp4d-synthetic")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--views", type=int, default=14)
    parser.add_argument("--out", type=Path, default=Path("var/gpu.json"))
    arguments = parser.parse_args()
    run = prepare_run("demo", dataset=arguments.dataset)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {"gpu": torch.cuda.get_device_name(DEVICE), "torch": torch.__version__}
    for name, value in measurements(run, arguments):
        result[name] = value
        arguments.out.write_text(json.dumps(result, indent=2))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def measurements(run: TrainingRun, arguments: argparse.Namespace) -> Iterator[tuple[str, object]]:
    """Each as it is there, by name."""
    yield "networks_views_per_s", {name: network(*size) for name, size in NETWORKS.items()}
    yield "train_frames_per_s", {device: training(run, device=device)["ours"] for device in ("cpu", "cuda")}
    for num_workers in arguments.workers:
        found = cluster.measure(arguments.dataset, num_workers, arguments.views, device="cuda")
        yield f"refresh_by_{num_workers}", found


def network(width: int, num_stacks: int) -> dict[str, float]:
    """Ours by precision, and the peer where its fixed width is this one."""
    torch.manual_seed(0)
    fan, encode = frozen(FAN(width, num_stacks), DEVICE), make_codec("standard", map_shapes(width)).encode
    crops = np.random.default_rng(0).integers(0, 256, (NUM_CROPS, 256, 256, 3), np.uint8)
    result = {}
    for precision in ("fp32", "bf16"):
        def ours(precision: str = precision) -> int:
            return len(extract_features(fan, crops, encode=encode, precision=precision)["lf"])

        result[precision] = frames_per_s(ours)
    if width == 256:
        peer = face_alignment.models.FAN(num_modules=num_stacks).eval().to(DEVICE)
        peer.load_state_dict(fan.state_dict())

        @torch.inference_mode()
        def theirs() -> int:
            for first in range(0, NUM_CROPS, BATCH_CROPS):
                batch = torch.from_numpy(crops[first : first + BATCH_CROPS]).to(DEVICE).permute(0, 3, 1, 2)
                peer(batch.float() / 255)[-1].cpu()
            return NUM_CROPS

        result["face_alignment_tf32"] = frames_per_s(theirs)
        with torch.backends.cudnn.flags(allow_tf32=False):
            result["face_alignment_fp32"] = frames_per_s(theirs)
    return result


if __name__ == "__main__":
    main()

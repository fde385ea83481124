"""Does damaged input always end in a sentence? Random damage to label files, images, videos, YAML files and weights.

    python benchmarks/fuzz.py --minutes 60 [--kind videos] [--seed 0]

Each input is a small valid file with bytes flipped, cut, repeated or replaced by awkward words. Reading it must
succeed or raise a `FantransError` of one line; a traceback, a killed process and a read that takes a minute are
findings. Prints the number of inputs of each kind, and for each finding its kind and seed: `--kind KIND --only SEED`
reads that one again.
Exits with 1 if there are findings.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import logging
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save

from models.fan import FAN
from pipeline.catalog import load_catalog
from pipeline.datasets.images import read_image
from pipeline.datasets.index import index_frames
from pipeline.datasets.videos import describe_video, iterate_video
from pipeline.errors import FantransError
from pipeline.experiments import load_experiment
from pipeline.weights.files import read_weights
from tests.bad_inputs import write_project, write_video

CHECKOUT = Path(__file__).resolve().parent.parent
BATCH, TIMEOUT_S, MAX_BYTES = 50, 60, 12 << 30
WORDS = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r\n", b",", b",,", b";", b"\t", b'"', b"'", b"-1", b"1.5",
    b"nan", b"1e309", b"9" * 30, b"0x10", b"\xc3\xa9", "\u0662".encode(), b"null", b"[]", b"{}", b"- ", b": ", b"${a}",
    b"${oc.env:X}", b"&a", b"*a", b"!!python/object:os.system", b"<<: *a", b"true", b"../..", b"/", b"~", b"%", b"#",
)  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one to four random changes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 2, 4, 16, 200)))
        kind = rng.randrange(6)
        if kind == 0:
            data[start:end] = rng.randbytes(end - start)
        elif kind == 1:
            data[start:end] = rng.choice(WORDS)
        elif kind == 2:
            data[start:start] = rng.choice(WORDS)
        elif kind == 3:
            data[start:start] = data[start:end] * rng.choice((1, 2, 50))
        elif kind == 4 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        else:
            del data[start : rng.choice((end, end, len(data)))]
    return bytes(data)


def read_labels(folder: Path, damage: Callable[[Path], None], rng: random.Random) -> None:
    """Read the labels of a data set, one file of them damaged."""
    name, pattern = rng.choice(
        (("bp4d", "bp4d/AUCoding/*/*.csv"), ("disfa", "disfa/ActionUnit_Labels/*/*.txt"), ("own", "own/*.csv"))
    )
    damage(rng.choice(sorted(folder.glob(pattern))))
    entry = load_catalog(folder / "data_catalog.yaml").get_dataset(name)
    index_frames(entry.root, entry.raw_layout, entry.rules, entry)


def read_an_image(folder: Path, damage: Callable[[Path], None], rng: random.Random) -> None:
    """Read a damaged image."""
    path = rng.choice(sorted(folder.glob("images/*")))
    damage(path)
    read_image(path)


def read_a_video(folder: Path, damage: Callable[[Path], None], rng: random.Random) -> None:
    """Read all frames of a damaged video."""
    path = rng.choice(sorted(folder.glob("videos/*")))
    damage(path)
    describe_video(path)
    for _ in iterate_video(path):
        pass


def read_settings(folder: Path, damage: Callable[[Path], None], rng: random.Random) -> None:
    """Read a damaged catalog or experiment."""
    if rng.random() < 0.5:
        damage(folder / "data_catalog.yaml")
        load_catalog(folder / "data_catalog.yaml")
    else:
        damage(folder / "configs/full.yaml")
        load_experiment(str(folder / "configs/full.yaml"))


def read_some_weights(folder: Path, damage: Callable[[Path], None], rng: random.Random) -> None:
    """Read damaged weights."""
    path = rng.choice(sorted(folder.glob("weights/*")))
    damage(path)
    read_weights(path)


KINDS = {
    "labels": read_labels,
    "images": read_an_image,
    "videos": read_a_video,
    "settings": read_settings,
    "weights": read_some_weights,
}


def write_valid(folder: Path) -> None:
    """Write valid files of each kind."""
    write_project(folder)
    (folder / "configs/full.yaml").write_text(
        "".join((CHECKOUT / f"configs/{name}.yaml").read_text() for name in ("demo_quick",))
        + "seeds: [0, 1]\nparts: [P1, P2]\n"
    )
    for name in ("images", "videos", "weights"):
        (folder / name).mkdir()
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8), (0, 0), 2)
    for suffix in ("jpg", "png", "bmp", "tiff", "webp"):
        cv2.imwrite(str(folder / f"images/a.{suffix}"), image)
    for name, codec in (
        ("a.avi", "mjpeg"),
        ("a.mp4", "libx264"),
        ("a.mkv", "mpeg4"),
        ("b.mkv", "ffv1"),
        ("b.avi", "mpeg4"),
    ):
        write_video(folder / "videos" / name, codec=codec)
    state = FAN(16).state_dict()
    (folder / "weights/a.safetensors").write_bytes(save(state))
    for name, content in (("a.pth", state), ("a.pth.tar", {"epoch": 3, "state_dict": state})):
        packed = io.BytesIO()
        torch.save(content, packed)
        (folder / "weights" / name).write_bytes(packed.getvalue())


def read_once(kind: str, seed: int, folder: Path) -> str | None:
    """Read one damaged input; returns what is wrong with the way it ended, None if nothing is."""
    rng = random.Random(f"{kind}/{seed}")
    before: dict[Path, bytes] = {}

    def damage(path: Path) -> None:
        before[path] = path.read_bytes()
        path.write_bytes(damaged(before[path], rng))

    try:
        KINDS[kind](folder, damage, rng)
    except FantransError as error:
        return f"a sentence of several lines: {error}" if "\n" in str(error).strip() else None
    except BaseException:
        return traceback.format_exc()
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    return None


def read_batch(kind: str, seeds: range, at: multiprocessing.sharedctypes.Synchronized[int], found: Path) -> None:
    """Read inputs, in a process that may die; findings are written as text files named by their seed."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    faulthandler.enable()
    logging.getLogger("fantrans").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        write_valid(folder)
        for seed in seeds:
            at.value = seed
            fault = read_once(kind, seed, folder)
            if fault is not None:
                (found / f"{kind}-{seed}.txt").write_text(fault)


def batches(kinds: list[str], first: int) -> Iterator[tuple[str, range]]:
    """Yield batches of seeds, kind by kind, without an end."""
    while True:
        for kind in kinds:
            yield kind, range(first, first + BATCH)
        first += BATCH


def main() -> int:
    """Read damaged inputs until the time is up; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="read the input of this seed alone")
    chosen = parser.parse_args()
    context = multiprocessing.get_context("fork")
    deadline = time.monotonic() + chosen.minutes * 60
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        found = Path(name)
        only = None if chosen.only is None else iter([(chosen.kind, range(chosen.only, chosen.only + 1))])
        for kind, seeds in only or batches([chosen.kind] if chosen.kind else list(KINDS), chosen.seed):
            if time.monotonic() > deadline:
                break
            start = seeds.start
            while start < seeds.stop:  # after a finding that ended the process, the others of its batch
                at = context.Value("q", start)
                process = context.Process(target=read_batch, args=(kind, range(start, seeds.stop), at, found))
                process.start()
                last, since = start, time.monotonic()
                while process.is_alive():
                    process.join(1)
                    if at.value != last:
                        last, since = at.value, time.monotonic()
                    if time.monotonic() - since > TIMEOUT_S:
                        process.kill()
                if process.exitcode == 0:
                    break
                (found / f"{kind}-{at.value}.txt").write_text(f"the process ended with {process.exitcode}")
                start = at.value + 1
            counts[kind] += len(seeds)
        print(", ".join(f"{count:,} {kind}" for kind, count in counts.items()))
        findings = sorted(found.glob("*.txt"))
        for path in findings:
            print(f"--- {path.stem}\n{path.read_text()}")
    print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

"""A project with small raw data sets of noise, and what can be wrong with it: faults by name, each with its command.

A fault changes the project's files, or nothing where the command is wrong itself.
`tests/integration/test_bad_inputs.py` checks the exit status and the sentence of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

AUS = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
HEADER = "0," + ",".join(map(str, AUS))
DISFA_AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
NUM_FRAMES = 6
SUBJECTS = {"bp4d": ("F001", "F003", "F004"), "disfa": ("SN001", "SN006", "SN003")}


class Fault(NamedTuple):
    """What is wrong, the command that meets it, its exit status and words of its sentence."""

    name: str
    change: Callable[[Path], object]
    command: str
    status: int
    words: str


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8)


def write_video(path: Path, num_frames: int = NUM_FRAMES, codec: str = "mjpeg") -> None:
    with av.open(str(path), "w") as video:
        stream = video.add_stream(codec, rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for seed in range(num_frames):
            video.mux(stream.encode(av.VideoFrame.from_ndarray(_noise(seed), format="rgb24")))
        video.mux(stream.encode(None))


def write_project(folder: Path) -> None:
    """Write data_catalog.yaml, configs/mine.yaml, and the raw data sets `bp4d`, `disfa` and `own` (a table)."""
    (folder / "configs").mkdir()
    (folder / "configs/mine.yaml").write_text("base: demo_quick\n")
    (folder / "data_catalog.yaml").write_text(
        "roots: {work: work, cache: cache, runs: runs}\n"
        "datasets:\n"
        "  bp4d: {root: bp4d, layout: bp4d, protocol: bp4d, experiment: mine}\n"
        "  disfa: {root: disfa, layout: disfa, protocol: disfa, experiment: mine}\n"
        "  own:\n"
        "    root: own\n"
        "    layout: table\n"
        "    protocol: by_number\n"
        "    experiment: mine\n"
        "    table: {file: frames.csv, aus: {12: smile}}\n"
    )
    for subject in SUBJECTS["bp4d"]:
        images, codes = folder / f"bp4d/BP4D-training/{subject}/T1", folder / "bp4d/AUCoding/AU_OCC"
        for made in (images, codes):
            made.mkdir(parents=True, exist_ok=True)
        for number in range(1, NUM_FRAMES + 1):
            cv2.imwrite(str(images / f"{number}.jpg"), _noise(number))
        lines = [f"{n}," + ",".join(str((n + au) % 2) for au in AUS) for n in range(1, NUM_FRAMES + 1)]
        (codes / f"{subject}_T1.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    (folder / "disfa/Videos_LeftCamera").mkdir(parents=True)
    for subject in SUBJECTS["disfa"]:
        write_video(folder / f"disfa/Videos_LeftCamera/LeftVideo{subject}_comp.avi")
        labels = folder / f"disfa/ActionUnit_Labels/{subject}"
        labels.mkdir(parents=True)
        for au in DISFA_AUS:
            lines = [f"{n},{(n + au) % 6}" for n in range(1, NUM_FRAMES + 1)]
            (labels / f"{subject}_au{au}.txt").write_text("\n".join(lines) + "\n")
    (folder / "own").mkdir()
    rows = ["subject,frame,source_file,smile"]
    for subject in ("s1", "s2", "s3"):
        for number in (1, 2):
            cv2.imwrite(str(folder / f"own/{subject}-{number}.png"), _noise(number))
            rows.append(f"{subject},{number},{subject}-{number}.png,{number % 2}")
    (folder / "own/frames.csv").write_text("\n".join(rows) + "\n")


# ------------------------------------------------------------------------------------------------- ways to change files


def text(path: str, old: str, new: str) -> Callable[[Path], object]:
    """Return a change that replaces the first `old` of a file."""

    def change(folder: Path) -> None:
        content = (folder / path).read_text()
        assert old in content
        (folder / path).write_text(content.replace(old, new, 1))

    return change


def content(path: str, data: bytes | str) -> Callable[[Path], object]:
    """Return a change that writes a file."""

    def change(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data.encode() if isinstance(data, str) else data)

    return change


def moved(path: str, name: str) -> Callable[[Path], object]:
    """Return a change that renames a file or folder within its folder."""
    return lambda folder: (folder / path).rename((folder / path).with_name(name))


def gone(path: str) -> Callable[[Path], object]:
    """Return a change that removes a file."""
    return lambda folder: (folder / path).unlink()


def nothing(folder: Path) -> None:
    """Change nothing: the command itself is wrong."""


CODES = "bp4d/AUCoding/AU_OCC/F001_T1.csv"
IMAGE = "bp4d/BP4D-training/F001/T1/1.jpg"
INTENSITIES = "disfa/ActionUnit_Labels/SN001/SN001_au1.txt"
VIDEO = "disfa/Videos_LeftCamera/LeftVideoSN001_comp.avi"
TABLE = "own/frames.csv"
CATALOG = "data_catalog.yaml"
CONFIG = "configs/mine.yaml"
BP4D, DISFA, OWN = (f"catalog check {name} --deep" for name in ("bp4d", "disfa", "own"))
LINE_1 = "1," + ",".join(str((1 + au) % 2) for au in AUS)
ENTRY_BP4D = "{root: bp4d, layout: bp4d, protocol: bp4d, experiment: mine}"


def in_catalog(entry: str) -> Callable[[Path], object]:
    """Return a change of bp4d's entry."""
    return text(CATALOG, ENTRY_BP4D, entry)


def weights_entry(**keys: object) -> Callable[[Path], object]:
    """Return a change that adds weights to the catalog."""

    def change(folder: Path) -> None:
        with (folder / CATALOG).open("a") as catalog:
            catalog.write(f"weights: {{mine: {json.dumps(keys)}}}\n")

    return change


# fmt: off - one line per fault
LABELS = [
    Fault("a value too many", text(CODES, LINE_1, LINE_1 + ",1"), BP4D, 1, "line 2: expected 13 values, found 14"),
    Fault("a value too few", text(CODES, LINE_1, "1,0"), BP4D, 1, "line 2: expected 13 values, found 2"),
    Fault("a word", text(CODES, LINE_1, "1,x" + ",0" * 11), BP4D, 1, "expected a whole number, found 'x'"),
    Fault("a fraction", text(CODES, LINE_1, "1,0.5" + ",0" * 11), BP4D, 1, "found '0.5'"),
    Fault("an empty cell", text(CODES, LINE_1, "1," + ",0" * 11), BP4D, 1, "found nothing"),
    Fault("frame 0", text(CODES, LINE_1, "0" + ",0" * 12), BP4D, 1, "0"),
    Fault("a negative frame", text(CODES, LINE_1, "-3" + ",0" * 12), BP4D, 1, "-3"),
    Fault("a frame twice", text(CODES, LINE_1, "2" + ",0" * 12), BP4D, 1, "codes a frame twice"),
    Fault("a huge number", text(CODES, LINE_1, "1" * 30 + ",0" * 12), BP4D, 1, "F001_T1.csv"),
    Fault("semicolons", content(CODES, HEADER.replace(",", ";") + "\n" + LINE_1.replace(",", ";")), BP4D, 1, ";"),
    Fault("tabs", content(CODES, HEADER.replace(",", "\t") + "\n" + LINE_1.replace(",", "\t")), BP4D, 1, "F001_T1.csv"),
    Fault("no header", content(CODES, LINE_1 + "\n"), BP4D, 1, "F001_T1.csv"),
    Fault("an empty file", content(CODES, ""), BP4D, 1, "F001_T1.csv is not a table"),
    Fault("a header alone", content(CODES, HEADER + "\n"), BP4D, 1, "it has a header and no rows"),
    Fault("bytes", content(CODES, b"\x80\xff\x00\x01" * 50), BP4D, 1, "F001_T1.csv"),
    Fault("UTF-16", content(CODES, (HEADER + "\n").encode("utf-16")), BP4D, 1, "F001_T1.csv"),
    Fault("a column away", text(CODES, HEADER, HEADER.replace("24", "25")), BP4D, 1, "no column for AU 24"),
    Fault("a column twice", text(CODES, HEADER, HEADER.replace("24", "23")), BP4D, 1, "23"),
    Fault("a copy", lambda f: (f / CODES).rename((f / CODES).with_name("F001_T1 (1).csv")), BP4D, 1, "F001_T1 (1).csv"),
    Fault(
        "an old copy", content("bp4d/AUCoding/AU_OCC/F001_T1_old.csv", HEADER + "\n" + LINE_1), BP4D, 1, "F001_T1_old"
    ),
    Fault("no task", moved(CODES, "F001.csv"), BP4D, 1, "F001.csv names no task"),
    Fault("an unknown subject", moved(CODES, "X001_T1.csv"), BP4D, 1, "'X001' is in no part"),
    Fault(
        "codes in two cases",
        content("bp4d/AUCoding/AU_OCC/F001_T1.CSV", HEADER + "\n" + LINE_1),
        BP4D,
        1,
        "F001_T1.CSV",
    ),
    Fault(
        "a name that is not UTF-8",
        lambda f: Path(str(f / "bp4d/AUCoding/AU_OCC/F\udce9_T1.csv")).write_text(HEADER),
        BP4D,
        1,
        "UTF-8",
    ),
    Fault("no codes", moved("bp4d/AUCoding/AU_OCC", "OLD"), BP4D, 1, "AU_OCC does not exist"),
    Fault("no images", moved("bp4d/BP4D-training", "x"), BP4D, 1, "BP4D-training does not exist"),
    Fault("a part without subjects", gone("bp4d/AUCoding/AU_OCC/F003_T1.csv"), BP4D, 1, "part P2 has no frames"),
    Fault(
        "a zip",
        lambda f: ((f / "bp4d/BP4D-training").rename(f / "bp4d/x"), (f / "bp4d/BP4D-training.zip").touch()),
        BP4D,
        1,
        "BP4D-training.zip",
    ),
    Fault("DISFA from 0", text(INTENSITIES, "1,2", "0,2"), DISFA, 1, "SN001"),
    Fault("DISFA a line short", text(INTENSITIES, "6,1\n", ""), DISFA, 1, "AU 1 lacks frames"),
    Fault("DISFA a file away", gone(INTENSITIES), DISFA, 1, "SN001_au1.txt does not exist"),
    Fault("DISFA a fraction", text(INTENSITIES, "1,2", "1,2.5"), DISFA, 1, "found '2.5'"),
    Fault("DISFA three values", text(INTENSITIES, "1,2", "1,2,3"), DISFA, 1, "line 1"),
    Fault("DISFA a header", text(INTENSITIES, "1,2", "frame,intensity\n1,2"), DISFA, 1, "line 1"),
    Fault("DISFA an unknown subject", moved("disfa/ActionUnit_Labels/SN001", "SN014"), DISFA, 1, "SN014"),
    Fault("DISFA no labels", moved("disfa/ActionUnit_Labels", "x"), DISFA, 1, "ActionUnit_Labels does not exist"),
    Fault(
        "DISFA two videos", lambda f: write_video(f / VIDEO.replace(".avi", ".mp4"), codec="mpeg4"), DISFA, 1, "SN001"
    ),
    Fault("a video that is too long", lambda f: write_video(f / VIDEO, 12), DISFA, 1, "12"),
    Fault("a video that is too short", lambda f: write_video(f / VIDEO, 2), DISFA, 1, "2"),
    Fault("a table without its column", text(TABLE, "smile", "frown"), OWN, 1, "smile"),
    Fault(
        "a table with semicolons",
        lambda f: (f / TABLE).write_text((f / TABLE).read_text().replace(",", ";")),
        OWN,
        1,
        "separates its columns with ';', expected ','",
    ),
    Fault("a table without its file", gone(TABLE), OWN, 1, "frames.csv"),
    Fault("a table with a word", text(TABLE, "s1-1.png,1", "s1-1.png,yes"), OWN, 1, "yes"),
    Fault("a table with a frame twice", text(TABLE, "s1,2", "s1,1"), OWN, 1, "codes a frame twice: rows 2 and 3"),
    Fault("a table without frames", content(TABLE, "subject,frame,source_file,smile\n"), OWN, 1, "frames.csv"),
    Fault("a table without a number in a subject", text(TABLE, "s1,1", "sam,1"), OWN, 1, "'sam' has no number"),
    Fault("a source that is away", text(TABLE, "s1-1.png", "x.png"), OWN, 0, "1 of 6 coded frames have no image"),
]


def _pipe(path: str) -> Callable[[Path], object]:
    return lambda folder: ((folder / path).unlink(missing_ok=True), os.mkfifo(folder / path))


IMAGES = [
    Fault("a pipe for an image", _pipe(IMAGE), BP4D, 0, "F001/T1/1"),
    Fault("a pipe for labels", _pipe(CODES), BP4D, 1, "F001_T1.csv: Not a regular file"),
    Fault("a pipe for a table", _pipe("own/frames.csv"), OWN, 1, "own/frames.csv is not a file"),
    Fault("a pipe for a photograph", _pipe("a.jpg"), "predict a.jpg --out b.csv", 2, "a.jpg is not a file: a pipe"),
    Fault("an address", nothing, "predict https://host/a.jpg --out b.csv", 2, "'https://host/a.jpg' is an address"),
    Fault("nothing to predict", nothing, "predict  --out b.csv", 2, "'' is empty"),
    Fault(
        "an overlay on its image",
        lambda f: cv2.imwrite(str(f / "a.png"), _noise(0)),
        "predict a.png --out b.csv --overlay .",
        2,
        "would replace the input a.png",
    ),
    Fault(
        "an overlay on another file",
        lambda f: ((f / "o").mkdir(), (f / "o/1.png").touch()),
        f"predict {IMAGE} --out b.csv --overlay o",
        2,
        "o/1.png exists; pass --force",
    ),
    Fault(
        "rendered faces of other settings",
        in_catalog(
            ENTRY_BP4D.replace("protocol: bp4d", "protocol: rendered_bp4d").replace(
                "}", ", rendered: {num_subjects: 3, num_tasks: 1, num_frames: 1, size_px: 64, seed: 1}}"
            )
        ),
        BP4D,
        1,
        "is not a rendered set",
    ),
    Fault("an empty image", content(IMAGE, b""), BP4D, 0, "F001/T1/1"),
    Fault("a page", content(IMAGE, "<!DOCTYPE html>"), BP4D, 0, "F001/T1/1"),
    Fault("half a image", lambda f: (f / IMAGE).write_bytes((f / IMAGE).read_bytes()[:900]), BP4D, 0, "F001/T1/1"),
    Fault("a image away", gone(IMAGE), BP4D, 0, "1 of 18 coded frames have no image"),
    Fault("a folder for a image", lambda f: ((f / IMAGE).unlink(), (f / IMAGE).mkdir()), BP4D, 0, "F001/T1/1"),
    Fault("a dangling link", lambda f: ((f / IMAGE).unlink(), (f / IMAGE).symlink_to("nowhere")), BP4D, 0, "F001/T1/1"),
    Fault(
        "a image twice",
        lambda f: (f / IMAGE).with_name("01.jpg").write_bytes((f / IMAGE).read_bytes()),
        BP4D,
        1,
        "01.jpg",
    ),
    Fault(
        "all images away",
        lambda f: [p.unlink() for p in (f / "bp4d").rglob("*.jpg")],
        BP4D,
        1,
        "none of the 18 coded frames",
    ),
    Fault("a text for a video", content(VIDEO, "no video"), DISFA, 1, "6 of 18 decoded frames cannot be read"),
    Fault("an empty video", content(VIDEO, b""), DISFA, 1, "6 of 18 decoded frames cannot be read"),
    Fault("half a video", lambda f: (f / VIDEO).write_bytes((f / VIDEO).read_bytes()[:2500]), DISFA, 1, "SN001/left/"),
    Fault("a video away", gone(VIDEO), DISFA, 0, "6 of 18 coded frames have no image or video"),
    Fault(
        "a video of another kind", lambda f: (f / VIDEO).write_bytes((f / IMAGE).read_bytes()), DISFA, 1, "SN001/left/"
    ),
]

SETTINGS = [
    Fault("a tab in YAML", content(CATALOG, "roots:\n\twork: x\n"), "catalog ls", 2, "data_catalog.yaml"),
    Fault("an empty catalog", content(CATALOG, ""), "catalog ls", 2, "data_catalog.yaml"),
    Fault("a catalog of bytes", content(CATALOG, b"\xff\xfe\x00"), "catalog ls", 2, "data_catalog.yaml"),
    Fault("a list for a catalog", content(CATALOG, "- a\n- b\n"), "catalog ls", 2, "data_catalog.yaml"),
    Fault("no roots", text(CATALOG, "roots: {work: work, cache: cache, runs: runs}\n", ""), "catalog ls", 2, "roots"),
    Fault("a key twice", text(CATALOG, "datasets:", "datasets: {}\ndatasets:"), "catalog ls", 2, "datasets"),
    Fault(
        "an unset variable",
        in_catalog(ENTRY_BP4D.replace("root: bp4d", 'root: "${oc.env:NOT_SET}"')),
        "catalog ls",
        2,
        "NOT_SET",
    ),
    Fault(
        "a wrong value of a variable",
        lambda f: (f / CATALOG).write_text("tracking: ${oc.env:PWD}\n" + (f / CATALOG).read_text()),
        "catalog ls",
        2,
        "the value is that of the variable PWD",
    ),
    Fault(
        "the old spelling",
        in_catalog(ENTRY_BP4D.replace("root: bp4d", 'root: "${NOT_SET:-x}"')),
        "catalog ls",
        2,
        "oc.env",
    ),
    Fault("a data set outside", text(CATALOG, "  bp4d:", '  "../x":'), "catalog ls", 2, "../x"),
    Fault("a data set without a name", text(CATALOG, "  bp4d:", '  "":'), "catalog ls", 2, "name"),
    Fault("a data set with a slash", text(CATALOG, "  bp4d:", "  a/b:"), "catalog ls", 2, "a/b"),
    Fault("a mistyped key", in_catalog(ENTRY_BP4D.replace("layout", "layuot")), "catalog ls", 2, "layuot"),
    Fault("an unknown layout", in_catalog(ENTRY_BP4D.replace("layout: bp4d", "layout: bp5d")), "catalog ls", 2, "bp5d"),
    Fault(
        "an unknown protocol",
        in_catalog(ENTRY_BP4D.replace("protocol: bp4d", "protocol: mine")),
        "catalog ls",
        2,
        "mine",
    ),
    Fault(
        "a protocol of intensities",
        in_catalog(ENTRY_BP4D.replace("protocol: bp4d", "protocol: disfa")),
        "catalog ls",
        2,
        "does not fit",
    ),
    Fault("an unknown AU left out", in_catalog(ENTRY_BP4D.replace("}", ", leave_out: [99]}")), "catalog ls", 2, "99"),
    Fault(
        "all AUs left out",
        in_catalog(ENTRY_BP4D.replace("}", f", leave_out: {list(AUS)}}}")),
        "catalog ls",
        2,
        "leave_out",
    ),
    Fault("a camera of BP4D", in_catalog(ENTRY_BP4D.replace("}", ", camera: right}")), "catalog ls", 2, "camera"),
    Fault(
        "an unknown folder",
        in_catalog(ENTRY_BP4D.replace("}", ", folders: {photos: x}}")),
        "catalog ls",
        2,
        "images",
    ),
    Fault("a list of frames away", in_catalog(ENTRY_BP4D.replace("}", ", frames: list.txt}")), BP4D, 1, "list.txt"),
    Fault(
        "a list of other frames",
        lambda f: (
            in_catalog(ENTRY_BP4D.replace("}", ", frames: l.txt}"))(f),
            (f / "l.txt").write_text("X9/T1/5.jpg\n"),
        ),
        BP4D,
        1,
        "l.txt",
    ),
    Fault(
        "an unknown experiment",
        in_catalog(ENTRY_BP4D.replace("experiment: mine", "experiment: other")),
        "refresh bp4d --dry-run",
        2,
        "other",
    ),
    Fault(
        "a root that is a file",
        lambda f: (in_catalog(ENTRY_BP4D.replace("root: bp4d", "root: afile"))(f), (f / "afile").touch()),
        BP4D,
        1,
        "afile",
    ),
    Fault("a missing root", in_catalog(ENTRY_BP4D.replace("root: bp4d", "root: nowhere")), BP4D, 1, "nowhere"),
    Fault("an experiment that is empty", content(CONFIG, ""), "refresh bp4d --dry-run", 2, "mine.yaml"),
    Fault("an experiment of bytes", content(CONFIG, b"\x00\xff"), "refresh bp4d --dry-run", 2, "mine.yaml"),
    Fault("a list for a base", content(CONFIG, "base: [a]\n"), "refresh bp4d --dry-run", 2, "base"),
    Fault("a base that is away", content(CONFIG, "base: other\n"), "refresh bp4d --dry-run", 2, "other"),
    Fault("its own base", content(CONFIG, "base: mine\n"), "refresh bp4d --dry-run", 2, "mine"),
    Fault("an unknown section", content(CONFIG, "base: demo\nhaed: {}\n"), "train bp4d", 2, "haed"),
    Fault("a word for a number", content(CONFIG, "base: demo\ntrain: {lr: fast}\n"), "train bp4d", 2, "fast"),
    Fault("a negative number", content(CONFIG, "base: demo\ntrain: {lr: -1}\n"), "train bp4d", 2, "lr"),
    Fault("not a number", content(CONFIG, "base: demo\ntrain: {lr: .nan}\n"), "train bp4d", 2, "lr"),
    Fault(
        "true for a number", content(CONFIG, "base: demo\ntrain: {seed: true}\n"), "train bp4d", 2, "expected a number"
    ),
    Fault("a null", content(CONFIG, "base: demo\ntrain: {lr: null}\n"), "train bp4d", 2, "lr"),
    Fault("an unknown variant", content(CONFIG, "base: demo\nhead: {variant: mine}\n"), "train bp4d", 2, "mine"),
    Fault("a head that is away", content(CONFIG, 'base: demo\nhead: {class: "none:Head"}\n'), "train bp4d", 2, "none"),
    Fault(
        "one view",
        content(CONFIG, "base: demo\ncache: {views: {num_views: 1}}\n"),
        "refresh bp4d --dry-run",
        2,
        "num_views",
    ),
    Fault(
        "unknown weights",
        content(CONFIG, "base: demo\ncache: {features: {weights: big}}\n"),
        "refresh bp4d --dry-run",
        2,
        "big",
    ),
    Fault(
        "a detector for a FAN",
        content(CONFIG, "base: demo\ncache: {features: {weights: retinaface-mobilenet}}\n"),
        "refresh bp4d --dry-run",
        2,
        "retinaface",
    ),
    Fault(
        "a FAN for a detector",
        content(CONFIG, "base: demo\ncache: {detector: {weights: fan-64}}\n"),
        "refresh bp4d --dry-run",
        1,
        "fan",
    ),
]

WEIGHTS = [
    Fault(
        "weights that are away",
        weights_entry(path="w.safetensors", sha256="0" * 64, family="fan", width=64, num_stacks=2, pooling="avg"),
        BP4D,
        1,
        "w.safetensors does not exist",
    ),
    Fault(
        "weights without pooling",
        weights_entry(path="w", sha256="0" * 64, family="fan", width=64, num_stacks=2),
        "catalog ls",
        2,
        "pooling",
    ),
    Fault("a short sha256", weights_entry(path="w", sha256="123", family="resnet18"), "catalog ls", 2, "sha256"),
    Fault("an unknown family", weights_entry(path="w", sha256="0" * 64, family="vgg"), "catalog ls", 2, "vgg"),
    *(
        Fault(f"add {name}", content("w.pth", data), "weights add w.pth --name w", 1, words)
        for name, data, words in (
            ("a page", "<!DOCTYPE html><html>", "page"),
            ("an LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "LFS"),
            ("an empty file", b"", "empty"),
            ("text", "hello", "w.pth"),
            ("a cut pickle", b"\x80\x02}q\x00(X\x01", "w.pth"),
            ("a cut zip", b"PK\x03\x04" + b"\x00" * 40, "w.pth"),
        )
    ),
    Fault("add a file that is away", nothing, "weights add nowhere.pth --name w", 1, "nowhere.pth does not exist"),
    Fault("add a folder", nothing, "weights add bp4d --name w", 1, "bp4d is a folder"),
    Fault("fetch an unknown name", nothing, "weights fetch 2dfan5", 2, "2dfan"),
]

STORES = [
    Fault("import text", content("a.h5", "no HDF5"), "cache import bp4d a.h5", 1, "a.h5"),
    Fault(
        "import a folder",
        nothing,
        "cache import bp4d own",
        1,
        "own is a folder; name the files in it, such as own/*.h5",
    ),
    Fault("import an empty file", content("a.h5", b""), "cache import bp4d a.h5", 1, "a.h5"),
    Fault("import a file that is away", nothing, "cache import bp4d nowhere.h5", 2, "nowhere.h5"),
    Fault(
        "import a cut file", content("a.h5", b"\x89HDF\r\n\x1a\n" + b"\x00" * 64), "cache import bp4d a.h5", 1, "a.h5"
    ),
    Fault("export without a cache", nothing, "cache export bp4d --out h5", 1, "bp4d has no cache"),
    Fault("statistics without a cache", nothing, "cache stats bp4d", 1, "bp4d has no cache"),
    Fault("remove without a cache", nothing, "cache rm bp4d 0123", 1, "bp4d has no cache"),
    Fault("train without a cache", nothing, "train bp4d", 1, "run `fantrans refresh bp4d"),
    Fault(
        "a damaged index", content("work/bp4d/frames.parquet", b"PAR1"), "train bp4d", 1, "frames.parquet is damaged"
    ),
    Fault("a run of bytes", content("runs/r/run.json", b"\x00"), "report r", 1, "run.json is damaged"),
    Fault(
        "a folder for the index",
        lambda f: (f / "work/own/frames.parquet").mkdir(parents=True),
        "refresh own",
        1,
        "is a folder",
    ),
    Fault("a run without folds", content("runs/r/run.json", "{}"), "report r", 1, "run.json"),
    Fault("a work root that is a file", lambda f: (f / "work").touch(), "refresh bp4d", 1, "work"),
]

FAULTS = [*LABELS, *IMAGES, *SETTINGS, *WEIGHTS, *STORES]

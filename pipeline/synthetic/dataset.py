"""Rendered data sets in the raw layouts of BP4D and DISFA, with the truth beside.

    BP4D-training/{subject}/{task}/{frame}.jpg      AUCoding/AU_OCC/{subject}_{task}.csv
    Videos_LeftCamera/LeftVideo{subject}_comp.avi   ActionUnit_Labels/{subject}/{subject}_au{n}.txt
    rendered.json     what the set was made from        truth.parquet     box, landmarks, intensities, pose by frame

A sequence's labels are written last: without them it is rendered anew.
"""

# K tasks, T frames of a sequence, A action units
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import chain, count, islice, zip_longest
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd

from pipeline.datasets import bp4d, disfa
from pipeline.errors import DataError
from pipeline.protocols import PROTOCOLS
from pipeline.runtime.atomic import write_atomically, write_bytes_atomically
from pipeline.runtime.progress import track
from pipeline.synthetic.au_schedules import PRESENT_FROM, level, plan_intensities
from pipeline.synthetic.backgrounds import sample_background
from pipeline.synthetic.bank import Bank, default_bank_path, load_bank
from pipeline.synthetic.camera import Camera, Lens, sample_light
from pipeline.synthetic.expressions import Expression, expression
from pipeline.synthetic.identity import Identity, sample_identity
from pipeline.synthetic.render import FaceTruth, render_face
from pipeline.tables import write_table

FORMAT = 3
"""Goes up when the same settings give other pixels or labels."""

BP4D_RATES = {
    1: 0.211,
    2: 0.170,
    4: 0.203,
    6: 0.461,
    7: 0.549,
    10: 0.594,
    12: 0.562,
    14: 0.466,
    15: 0.169,
    17: 0.344,
    23: 0.165,
    24: 0.152,
} | {5: 0.04, 9: 0.06, 16: 0.05, 20: 0.03, 25: 0.30, 26: 0.20}
"""Part of BP4D's frames with each of its twelve action units; then others that act, about as often as they look."""

DISFA_RATES = {
    1: 0.050,
    2: 0.040,
    4: 0.150,
    5: 0.02,
    6: 0.079,
    9: 0.042,
    12: 0.129,
    15: 0.03,
    17: 0.06,
    20: 0.02,
    25: 0.278,
    26: 0.089,
}
"""Part of DISFA's frames with intensity 2 or more."""

_BP4D_COLUMNS = (1, 2, *range(4, 8), *range(9, 21), 22, 23, 24, *range(27, 40))
_NOT_CODABLE = 9
_FRAME_STRIDE = 9
_DISFA_FPS = 20


@dataclass(frozen=True)
class Settings:
    """What decides a rendered set's content."""

    layout: str
    num_subjects: int
    num_tasks: int
    num_frames: int
    seed: int
    size_px: int
    format: int = FORMAT

    @property
    def rates(self) -> Mapping[int, float]:
        """Base rates by AU."""
        return BP4D_RATES if self.layout == "bp4d" else DISFA_RATES


def write_dataset(
    out: Path,
    *,
    layout: str,
    num_subjects: int,
    num_tasks: int,
    num_frames: int,
    seed: int,
    size_px: int = 512,
    num_workers: int = 1,
    bank_path: Path | None = None,
) -> None:
    """Render what is missing of a data set in `out`; a set of other settings there is a `DataError`.

    BP4D: `num_frames` images a task. DISFA: one video a subject, its tasks one after another.
    """
    settings = Settings(layout, num_subjects, num_tasks, num_frames, seed, size_px)
    _claim(out, settings)
    subjects = subject_names(layout, num_subjects)
    missing = [i for i, subject in enumerate(subjects) if not _is_complete(out, settings, subject)]
    if not missing and (out / "truth.parquet").is_file():
        return
    path = bank_path or default_bank_path()
    load_bank(path)
    sizes = {"num_subjects": num_subjects, "num_tasks": num_tasks, "num_frames": num_frames}
    plan = plan_intensities(settings.rates, **sizes, rng=np.random.default_rng([seed, 3]))
    with track("render subjects", total=len(missing) * num_tasks * num_frames, unit="frames") as step:
        if num_workers == 1 or len(missing) < 2:
            for i in missing:
                step(_write_subject(out, settings, i, plan[i], path))
        else:
            with ProcessPoolExecutor(min(num_workers, len(missing)), get_context("spawn"), _one_thread) as pool:
                tasks = [pool.submit(_write_subject, out, settings, i, plan[i], path) for i in missing]
                for done in as_completed(tasks):
                    step(done.result())
    parts = [_truth_path(out, subject, task) for subject in subjects for task in _sequences(settings)]
    rows = [row for part in parts for row in json.loads(part.read_text())]
    write_table(out / "truth.parquet", pd.DataFrame(rows))


def count_missing_frames(
    out: Path, *, layout: str, num_subjects: int, num_tasks: int, num_frames: int, seed: int, size_px: int = 512
) -> tuple[int, int]:
    """Return the frames of subjects that `write_dataset` would render, and the frames of all subjects."""
    settings = Settings(layout, num_subjects, num_tasks, num_frames, seed, size_px)
    subjects = subject_names(layout, num_subjects)
    num_missing = sum(not _is_complete(out, settings, subject) for subject in subjects)
    num_each = num_tasks * num_frames
    if num_missing == 0 and not (out / "truth.parquet").is_file():  # killed before its last file
        num_missing = 1
    return num_missing * num_each, num_subjects * num_each


def subject_names(layout: str, num_subjects: int) -> list[str]:
    """The protocol's subjects first, women and men in turn, then numbers that continue theirs."""
    known = sorted(PROTOCOLS[layout].subject_parts)
    if layout == "disfa":
        return list(islice(chain(known, (f"SN{n:03}" for n in count(int(known[-1][2:]) + 1))), num_subjects))
    women, men = ([name for name in known if name[0] == sex] for sex in "FM")
    in_turn = [name for pair in zip_longest(women, men) for name in pair if name]
    last = len(women), len(men)
    more = chain.from_iterable((f"F{last[0] + n:03}", f"M{last[1] + n:03}") for n in count(1))
    return list(islice(chain(in_turn, more), num_subjects))


def _claim(out: Path, settings: Settings) -> None:
    """Note the settings in a new folder, or check that they are those of an old one."""
    path, wanted = out / "rendered.json", asdict(settings)
    if path.is_file():
        found = json.loads(path.read_text())
        if found != wanted:
            other = ", ".join(f"{k} {found.get(k)} instead of {v}" for k, v in wanted.items() if found.get(k) != v)
            raise DataError(f"{out} holds a rendered set with {other}; choose another folder or remove this one")
        return
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and holds no rendered set (no rendered.json); choose another folder")
    write_bytes_atomically(path, json.dumps(wanted, indent=1).encode())


def _sequences(settings: Settings) -> list[str]:
    """Names of a subject's sequences, each written and resumed as a whole."""
    return [disfa.TASK] if settings.layout == "disfa" else [_task_name(k) for k in range(settings.num_tasks)]


def _task_name(task: int) -> str:
    return f"T{task + 1}"


def _truth_path(out: Path, subject: str, sequence: str) -> Path:
    return out / "truth" / f"{subject}_{sequence}.json"


def _write_truth(path: Path, rows: list[dict]) -> None:
    write_bytes_atomically(path, json.dumps(rows).encode())


def _first_frame(settings: Settings, subject_index: int, task: int) -> int:
    """Where a sequence's coded frames start: the first starts at 2440, as in BP4D."""
    if subject_index == task == 0:
        return 2440
    return int(np.random.default_rng([settings.seed, 4, subject_index, task]).integers(1, 2500))


def _is_complete(out: Path, settings: Settings, subject: str) -> bool:
    """Whether all of a subject's sequences are there."""
    if settings.layout == "disfa":
        labels = [out / disfa.intensity_file(subject, au) for au in disfa.CODED_AUS]
        return all(
            path.is_file() for path in [out / disfa.video_file(subject), _truth_path(out, subject, disfa.TASK), *labels]
        )
    return all(_is_sequence_complete(out, settings, subject, task) for task in range(settings.num_tasks))


def _is_sequence_complete(out: Path, settings: Settings, subject: str, task: int) -> bool:
    """Whether labels, written last, and all images are there."""
    folder = out / bp4d.images_folder(subject, _task_name(task))
    files = out / bp4d.codes_file(subject, _task_name(task)), _truth_path(out, subject, _task_name(task))
    return all(path.is_file() for path in files) and len(list(folder.glob("[0-9]*.jpg"))) == settings.num_frames


def _one_thread() -> None:
    cv2.setNumThreads(1)


# -------------------------------------------------------------------------------------------------------- one subject


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture with its truth and intensities 0..1 by AU."""

    image: np.ndarray
    truth: FaceTruth
    intensities: Mapping[int, float]


def _write_subject(out: Path, settings: Settings, index: int, plan: np.ndarray, bank_path: Path) -> int:
    """Render a subject's missing sequences; the number of frames that are there afterwards."""
    subject = subject_names(settings.layout, index + 1)[index]
    recording = Recording(load_bank(bank_path), settings, index, plan)
    if settings.layout == "disfa":
        _write_video(out, settings, recording, subject)
    else:
        for task in range(settings.num_tasks):
            if not _is_sequence_complete(out, settings, subject, task):
                _write_sequence(out, settings, recording, subject, task)
    return settings.num_tasks * settings.num_frames


def _write_sequence(out: Path, settings: Settings, recording: Recording, subject: str, task: int) -> None:
    first = _first_frame(settings, recording.index, task)
    rows, codes = [], []
    for i, frame in enumerate(recording.frames(task)):
        number = first + i * _FRAME_STRIDE
        _, code = cv2.imencode(".jpg", frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 93])
        path = out / bp4d.images_folder(subject, _task_name(task)) / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(code.tobytes())
        rows.append(_truth_row(f"{subject}/{_task_name(task)}/{number}", frame))
        codes.append([number, *(_code(au, frame.intensities) for au in _BP4D_COLUMNS)])
    _write_truth(_truth_path(out, subject, _task_name(task)), rows)
    lines = [",".join(map(str, line)) for line in [(0, *_BP4D_COLUMNS), *codes]]
    write_bytes_atomically(out / bp4d.codes_file(subject, _task_name(task)), ("\n".join(lines) + "\n").encode())


def _code(au: int, intensities: Mapping[int, float]) -> int:
    return int(intensities[au] >= PRESENT_FROM) if au in intensities else _NOT_CODABLE


def _write_video(out: Path, settings: Settings, recording: Recording, subject: str) -> None:
    rows: list[dict] = []
    coded: dict[int, list[str]] = {au: [] for au in disfa.CODED_AUS}

    def write(temp: Path) -> None:
        with av.open(str(temp), "w", format="avi") as container:
            stream = container.add_stream("mjpeg", rate=_DISFA_FPS)
            stream.width = stream.height = settings.size_px
            stream.pix_fmt = "yuvj420p"
            stream.bit_rate = 60 * settings.size_px**2
            stream.options = {"qmin": "2", "qmax": "3"}
            for task in range(settings.num_tasks):
                for frame in recording.frames(task):
                    number = len(rows) + 1
                    rows.append(_truth_row(f"{subject}/{disfa.TASK}/{number}", frame))
                    for au in disfa.CODED_AUS:
                        coded[au].append(f"{number},{level(frame.intensities[au])}")
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
            container.mux(stream.encode(None))

    write_atomically(out / disfa.video_file(subject), write)
    _write_truth(_truth_path(out, subject, disfa.TASK), rows)
    for au, lines in coded.items():
        write_bytes_atomically(out / disfa.intensity_file(subject, au), ("\n".join(lines) + "\n").encode())


def _truth_row(frame_id: str, frame: Frame) -> dict:
    truth = frame.truth
    x1, y1, x2, y2 = truth.box_xyxy.tolist()
    return {
        "frame_id": frame_id,
        "x1": x1,
        "y1": y1,
        "x2": x2,
        "y2": y2,
        "landmarks_xy": truth.landmarks.ravel().tolist(),
        "yaw_deg": truth.yaw_deg,
        "pitch_deg": truth.pitch_deg,
        "roll_deg": truth.roll_deg,
        **{f"intensity_{au:02d}": float(value) for au, value in sorted(frame.intensities.items())},
    }


class Recording:
    """One subject in front of the camera, acting a plan (K, T, A) of intensities: a function of settings and plan."""

    def __init__(self, bank: Bank, settings: Settings, index: int, plan: np.ndarray) -> None:
        self.index = index
        self._bank, self._settings, self._plan = bank, settings, plan
        rng = np.random.default_rng([settings.seed, 1, index])
        is_man = subject_names(settings.layout, index + 1)[index].startswith("M")
        gender = float(is_man) if settings.layout == "bp4d" else None
        self._identity = sample_identity(bank, rng, texture_px=512, gender=gender, is_face_clear=True)
        self._camera = _studio(rng, settings.size_px)
        self._asymmetry = float(np.clip(rng.normal(0, 0.1), -0.3, 0.3))
        self._rest_tilt = rng.normal(0, [4.0, 4.0, 2.5])

    def frames(self, task: int) -> Iterator[Frame]:
        """The frames of a task, in time."""
        rng = np.random.default_rng([self._settings.seed, 2, self.index, task])
        aus = list(self._settings.rates)
        speaks = rng.random() < 0.2
        tilt = self._rest_tilt + rng.normal(0, [5.0, 3.0, 2.0])
        drift = rng.normal(0, [5.0, 3.5, 2.5])
        phase = rng.uniform(0, 2 * np.pi, 3)
        light = self._camera.light * np.exp(rng.normal(0, 0.05)).astype(np.float32)
        light[0] = self._camera.light[0]
        light[2] = self._camera.light[2]
        for t, row in enumerate(self._plan[task]):
            intensities = {au: float(value) for au, value in zip(aus, row, strict=True)}
            at = (t + 0.5) / len(self._plan[task])
            yaw, pitch, roll = tilt + drift * np.sin(2.5 * at + phase)
            camera = replace(
                self._camera, yaw_deg=float(yaw), pitch_deg=float(pitch), roll_deg=float(roll), light=light
            )
            face = _acted(self._bank, self._identity, intensities, rng, speaks=speaks, asymmetry=self._asymmetry)
            image, truth = render_face(self._bank, self._identity, face, camera, rng, size_px=self._settings.size_px)
            yield Frame(image, truth, intensities)


def _acted(
    bank: Bank,
    identity: Identity,
    intensities: Mapping[int, float],
    rng: np.random.Generator,
    *,
    speaks: bool,
    asymmetry: float,
) -> Expression:
    """The intensities as this person shows them, with what no label speaks of: gaze, blinks, speech."""
    shown = dict(intensities)
    closed = max(shown.get(23, 0.0), shown.get(24, 0.0))
    for au in (25, 26):  # pressed lips do not part
        if closed and au in shown:
            shown[au] *= max(0.0, 1 - 1.6 * closed)
    gaze = float(rng.normal(0, 7)), float(rng.normal(0, 4))
    blink = float(rng.uniform(0.5, 1)) if rng.random() < 0.05 else float(rng.uniform(0, 0.08))
    extra = {}
    talk = rng.random(3)
    if speaks and closed < 0.3:
        extra = {"jawOpen": 0.22 * float(talk[0]), "mouthFunnel": 0.3 * float(talk[1]) * (talk[2] < 0.5)}
    return expression(
        bank,
        shown,
        strength=identity.strength,
        asymmetry=asymmetry + float(rng.normal(0, 0.07)),
        extra=extra,
        gaze_deg=gaze,
        blink=blink,
    )


def _studio(rng: np.random.Generator, size_px: int) -> Camera:
    """A subject's session: camera, light and background stay."""
    light = sample_light(rng)
    lens = Lens(
        gains=np.exp(rng.normal(0, 0.14) + rng.normal(0, [0.04, 0.01, 0.05])).astype(np.float32),
        contrast=float(np.clip(rng.normal(1.05, 0.1), 0.85, 1.3)),
        defocus_px=float(rng.uniform(0.45, 0.9)) * size_px / 512,
        vignette=float(rng.uniform(0, 0.15)),
        noise=float(rng.uniform(0.002, 0.009)),
    )
    return Camera(
        yaw_deg=0.0,
        pitch_deg=0.0,
        roll_deg=0.0,
        light=light,
        lens=lens,
        centre_frac=(float(rng.uniform(0.43, 0.57)), float(rng.uniform(0.45, 0.58))),
        face_frac=float(rng.uniform(0.38, 0.54)),
        distance_m=float(rng.uniform(0.9, 2.2)),
        body_turn=float(rng.uniform(0.1, 0.6)),
        shadow_softness=float(rng.uniform(1.0, 3.0)),
        background=sample_background(rng, size_px),
    )

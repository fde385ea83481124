"""Write rendered data sets in the raw layouts of BP4D and DISFA, with the truth of every frame.

    BP4D-training/{subject}/{task}/{frame}.jpg      AUCoding/AU_OCC/{subject}_{task}.csv
    Videos_LeftCamera/LeftVideo{subject}_comp.avi   ActionUnit_Labels/{subject}/{subject}_au{n}.txt
    rendered.json     settings of the set           truth.parquet     box, landmarks, intensities, pose by frame

A sequence's labels are written last; a sequence without labels is rendered again.
"""

# K tasks, T frames of a sequence, A action units
from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd

from pipeline.datasets import disfa
from pipeline.errors import DataError
from pipeline.runtime.atomic import write_atomically, write_bytes_atomically
from pipeline.runtime.process_pool import process_pool
from pipeline.runtime.progress import track
from pipeline.synthetic.au_schedules import PRESENT_FROM, level, plan_intensities
from pipeline.synthetic.bank import default_bank_path, load_bank
from pipeline.synthetic.layout import (
    BP4D_COLUMNS,
    Settings,
    codes_path,
    first_frame,
    image_path,
    is_sequence_complete,
    is_subject_complete,
    levels_path,
    sequence_names,
    subject_names,
    task_name,
    truth_path,
    video_path,
)
from pipeline.synthetic.recording import Frame, Recording
from pipeline.tables import write_table

_SETTINGS_NAME = "rendered.json"
_NOT_CODABLE = 9
_FRAME_STRIDE = 9
_DISFA_FPS = 20


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
    """Render the missing files of a data set in `out`; `DataError` if `out` holds a set with other settings.

    BP4D: `num_frames` images per task. DISFA: one video per subject, with its tasks one after another.
    """
    settings = Settings(layout, num_subjects, num_tasks, num_frames, seed, size_px)
    if not _check_settings(out, settings):
        write_bytes_atomically(out / _SETTINGS_NAME, json.dumps(asdict(settings), indent=1).encode())
    subjects = subject_names(layout, num_subjects)
    missing = [i for i, subject in enumerate(subjects) if not is_subject_complete(out, settings, subject)]
    if not missing and (out / "truth.parquet").is_file():
        return
    path = bank_path or default_bank_path()
    load_bank(path)
    sizes = {"num_subjects": num_subjects, "num_tasks": num_tasks, "num_frames": num_frames}
    plan = plan_intensities(settings.rates, **sizes, rng=np.random.default_rng([seed, 3]))
    with track("render subjects", total=len(missing) * num_tasks * num_frames, unit="frames") as on_progress:
        if num_workers == 1 or len(missing) < 2:
            for i in missing:
                on_progress(_write_subject(out, settings, i, plan[i], path))
        else:
            with process_pool(min(num_workers, len(missing)), _one_thread) as pool:
                tasks = [pool.submit(_write_subject, out, settings, i, plan[i], path) for i in missing]
                for done in as_completed(tasks):
                    on_progress(done.result())
    parts = [truth_path(out, subject, task) for subject in subjects for task in sequence_names(settings)]
    rows = [row for part in parts for row in json.loads(part.read_text())]
    write_table(out / "truth.parquet", pd.DataFrame(rows))


def count_missing_frames(
    out: Path, *, layout: str, num_subjects: int, num_tasks: int, num_frames: int, seed: int, size_px: int = 512
) -> tuple[int, int]:
    """Return the frames of subjects that `write_dataset` would render, and the frames of all subjects.

    Raises `DataError` as `write_dataset` does.
    """
    settings = Settings(layout, num_subjects, num_tasks, num_frames, seed, size_px)
    _check_settings(out, settings)
    subjects = subject_names(layout, num_subjects)
    num_missing = sum(not is_subject_complete(out, settings, subject) for subject in subjects)
    num_each = num_tasks * num_frames
    if num_missing == 0 and not (out / "truth.parquet").is_file():  # killed before its last file
        num_missing = 1
    return num_missing * num_each, num_subjects * num_each


def _check_settings(out: Path, settings: Settings) -> bool:
    """Return whether the folder has these settings; raise `DataError` if it has others, or is not a rendered set."""
    path, wanted = out / _SETTINGS_NAME, asdict(settings)
    if path.is_file():
        found = json.loads(path.read_text())
        if found != wanted:
            other = ", ".join(f"{k} {found.get(k)} instead of {v}" for k, v in wanted.items() if found.get(k) != v)
            raise DataError(f"{out} holds a rendered set with {other}; choose another folder, or remove this one")
        return True
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and is not a rendered set (no {_SETTINGS_NAME}); choose another folder")
    return False


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _write_subject(out: Path, settings: Settings, index: int, plan: np.ndarray, bank_path: Path) -> int:
    """Render a subject's missing sequences; return the subject's number of frames."""
    subject = subject_names(settings.layout, index + 1)[index]
    recording = Recording(load_bank(bank_path), settings, index, plan)
    if settings.layout == "disfa":
        _write_video(out, settings, recording, subject)
    else:
        for task in range(settings.num_tasks):
            if not is_sequence_complete(out, settings, subject, task):
                _write_sequence(out, settings, recording, subject, task)
    return settings.num_tasks * settings.num_frames


def _write_sequence(out: Path, settings: Settings, recording: Recording, subject: str, task: int) -> None:
    first = first_frame(settings, recording.index, task)
    rows, codes = [], []
    for i, frame in enumerate(recording.frames(task)):
        number = first + i * _FRAME_STRIDE
        _, code = cv2.imencode(".jpg", frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 93])
        path = image_path(out, subject, task, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(code.tobytes())
        rows.append(_truth_row(f"{subject}/{task_name(task)}/{number}", frame))
        codes.append([number, *(_code(au, frame.intensities) for au in BP4D_COLUMNS)])
    _write_truth(truth_path(out, subject, task_name(task)), rows)
    lines = [",".join(map(str, line)) for line in [(0, *BP4D_COLUMNS), *codes]]
    write_bytes_atomically(codes_path(out, subject, task), ("\n".join(lines) + "\n").encode())


def _code(au: int, intensities: Mapping[int, float]) -> int:
    return int(intensities[au] >= PRESENT_FROM) if au in intensities else _NOT_CODABLE


def _write_video(out: Path, settings: Settings, recording: Recording, subject: str) -> None:
    rows: list[dict[str, Any]] = []
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

    write_atomically(video_path(out, subject), write)
    _write_truth(truth_path(out, subject, disfa.TASK), rows)
    for au, lines in coded.items():
        write_bytes_atomically(levels_path(out, subject, au), ("\n".join(lines) + "\n").encode())


def _write_truth(path: Path, rows: list[dict[str, Any]]) -> None:
    write_bytes_atomically(path, json.dumps(rows).encode())


def _truth_row(frame_id: str, frame: Frame) -> dict[str, Any]:
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

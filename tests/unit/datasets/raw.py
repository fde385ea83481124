"""Small replicas of the raw layouts, with empty files as images and videos of a few px where they are counted."""

from pathlib import Path

import av
import numpy as np

AUS = (1, 2, 4, 5, 6, 7, 10, 12, 14, 15, 17, 23, 24)
HEADER = "0," + ",".join(map(str, AUS))
ZEROS = ",0" * len(AUS)
DISFA_AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)


def write_codes(root: Path, name="F001_T1.csv", rows=("5" + ZEROS,), header=HEADER) -> Path:
    path = root / "AUCoding/AU_OCC" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def write_images(root: Path, *names: str, folder="BP4D-training/F001/T1") -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / folder / name).touch()
    return root / folder


def write_intensities(root: Path, subject="SN001", frames=range(1, 4), aus=DISFA_AUS, suffix=".txt", value=0) -> Path:
    folder = root / "ActionUnit_Labels" / subject
    folder.mkdir(parents=True, exist_ok=True)
    for au in aus:
        (folder / f"{subject}_au{au}{suffix}").write_text("".join(f"{frame},{value}\n" for frame in frames))
    return folder


def write_video(path: Path, num_frames: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi") as video:
        stream = video.add_stream("mjpeg", rate=20)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuvj420p"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), number % 256, np.uint8), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    return path

"""Read videos: what a video is, and its frames by number, each with its image or the reason why it has none.

`number_frames` numbers the frames, so a lost frame leaves its number empty and moves no other. Frames are turned and
mirrored as the file's display matrix says, like players do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.buffer import Buffer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from pipeline.datasets.video_numbers import FrameNumbers, PacketTimes, number_frames
from pipeline.errors import DataError, DataNotFoundError

_MAX_DEMUX_ERRORS = 100
_SUSPECT_S = 1.0
"""How long frames after a damaged one are given up if no key frame comes first; later ones hardly show the damage."""
_CLOCK_OF_ITS_OWN = 0x0200  # AVFMT_TS_DISCONT

_NO_FRAME = "the video has no frame at this time"
_DAMAGED = "the video's data is damaged here"


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video is, without its pixels."""

    num_frames: int
    """Numbers from the first to the last frame, those of lost frames included."""
    fps: float
    """Frames per second; the average where the rate varies."""
    width: int
    """In px, as displayed: after the rotation."""
    height: int
    rotation_deg: int
    """Clockwise turn from stored to displayed: 0, 90, 180 or 270."""
    is_mirrored: bool
    """Whether players mirror it from left to right before they turn it."""


class VideoFrame(NamedTuple):
    """One frame of a video."""

    number: int
    """0-based."""
    time_s: float
    """Since the video's first frame."""
    image: np.ndarray | None
    """RGB uint8 (H, W, 3) as displayed; None if it cannot be read."""
    reason: str | None
    """Why there is no image."""


def describe_video(path: Path) -> VideoInfo:
    """Describe a video; reads its packets and decodes one frame.

    Raises `DataNotFoundError` if there is no such file, `DataError` if it is not a video that can be decoded.
    """
    stream = _stream(path)
    frame = next((frame for _, frame in _decode(path, stream.position, num_threads=1) if frame is not None), None)
    if frame is None:
        raise DataError(f"{path} has no frame that can be decoded; copy the video again from its source")
    (x_right, x_down), (y_right, y_down) = _display_axes(frame)
    width, height = (frame.width, frame.height) if x_right else (frame.height, frame.width)
    is_mirrored = x_right * y_down - x_down * y_right < 0
    right, down = (-x_right, -x_down) if is_mirrored else (x_right, x_down)
    return VideoInfo(
        num_frames=stream.numbers.num_frames,
        fps=stream.numbers.fps,
        width=width,
        height=height,
        rotation_deg=round(math.degrees(math.atan2(down, right))) % 360,
        is_mirrored=is_mirrored,
    )


def iterate_video(path: Path, *, start: int = 0) -> Iterator[VideoFrame]:
    """Yield every frame of a video in order, from the number `start`; lost and damaged ones without an image.

    The video is decoded as frames are taken, on threads, a few ahead; frames before `start` are decoded, too. Raises
    `DataNotFoundError` if there is no such file, `DataError` if it is not a video.
    """
    return _frames(path, _stream(path), is_wanted=lambda number: number >= start, last=None)


def read_video_frames(path: Path, wanted: set[int]) -> Iterator[VideoFrame]:
    """Yield the frames of a video with the 0-based numbers `wanted`, in order; else as `iterate_video`.

    The video is decoded up to the last of them. A number beyond its end is yielded without an image.
    """
    stream = _stream(path)
    yield from _frames(path, stream, is_wanted=wanted.__contains__, last=max(wanted))
    num_frames = stream.numbers.num_frames
    for number in sorted(number for number in wanted if number >= num_frames):
        yield VideoFrame(number, number / stream.numbers.fps, None, f"the video has {num_frames:,} frames")


class _Stream(NamedTuple):
    """The stream of a file that is its video."""

    position: int
    """In the file."""
    packets: PacketTimes
    numbers: FrameNumbers

    def lost(self, number: int) -> VideoFrame:
        has_data = self.packets.has_data[self.numbers.by_packet == number].any()
        return VideoFrame(number, self.numbers.time_s(number), None, _DAMAGED if has_data else _NO_FRAME)


def _stream(path: Path) -> _Stream:
    if not path.is_file():
        raise DataNotFoundError(f"{path} is not a file; check the path of the video")
    status = path.stat()
    return _read_stream(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _read_stream(path: Path, size: int, time_ns: int) -> _Stream:  # noqa: ARG001 - size and time tell a changed file
    """Read all packets and number the frames; of several streams, the one with the most frames that is not a cover."""
    with _open(path) as video:
        streams = [s for s in video.streams.video if s.codec_context and not s.disposition & Disposition.attached_pic]
        if not streams:  # with none, `demux` would read all, sound as well
            raise DataError(f"{path} has no video frames; expected a video such as AVI, MP4 or MKV")
        packets: dict[int, list[tuple[float, float, bool, bool, bool]]] = {stream.index: [] for stream in streams}
        for packet in _demux(video, streams):
            packets[packet.stream_index].append(
                (
                    math.nan if packet.pts is None else packet.pts,
                    math.nan if packet.dts is None else packet.dts,
                    packet.is_keyframe,
                    not packet.is_discard,
                    packet.size > 0,
                )
            )
        stream = max(streams, key=lambda stream: sum(p[3] for p in packets[stream.index]), default=None)
        if stream is None or not any(p[3] for p in packets[stream.index]):
            raise DataError(f"{path} has no video frames; expected a video such as AVI, MP4 or MKV")
        pts, dts, is_key, is_shown, has_data = (np.array(column) for column in zip(*packets[stream.index], strict=True))
        rate = stream.guessed_rate or stream.average_rate
        times = PacketTimes(
            pts=pts.astype(np.float64),
            dts=dts.astype(np.float64),
            is_key=is_key,
            is_shown=is_shown,
            has_data=has_data & is_shown,
            tick_s=stream.time_base or Fraction(1),
            nominal_fps=float(rate) if rate else None,
            counts_frames=video.format.name == "avi",
            starts_at_zero=not video.format.flags & _CLOCK_OF_ITS_OWN,
            is_reordered=stream.codec_context.has_b_frames,
        )
        return _Stream(stream.index, times, number_frames(times))


def _open(path: Path) -> av.container.InputContainer:
    name = str(path.absolute())  # a relative name with a colon would count as a protocol
    try:
        video = av.open(name, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise DataError(
            f"{path} is not a video that can be read: {_message(error)}; expected AVI, MP4 or MKV"
        ) from None
    if video.format.name.endswith("_pipe") or video.format.name in ("image2", "tty"):  # images and text count as videos
        video.close()
        raise DataError(f"{path} is an image or a text, not a video; expected AVI, MP4 or MKV")
    return video


def _message(error: Exception) -> str:
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


def _demux(video: av.container.InputContainer, streams: list[av.VideoStream]) -> Iterator[av.Packet[av.stream.Stream]]:
    """Yield the packets of streams, without those that flush a decoder; continues after damage to the container."""
    for _ in range(_MAX_DEMUX_ERRORS):
        try:
            for packet in video.demux(streams):
                if packet.size or packet.pts is not None or packet.dts is not None:
                    yield packet
        except av.FFmpegError:
            continue
        return


def _decode(path: Path, position: int, *, num_threads: int) -> Iterator[tuple[int, av.VideoFrame | None]]:
    """Yield the decoder's frames, each with its packet's position in the stream; -1 and None for each of its errors.

    num_threads: 0 for the decoder's choice.
    """
    with _open(path) as video:
        stream = video.streams[position]
        assert isinstance(stream, av.VideoStream)
        decoder = stream.codec_context
        decoder.thread_type, decoder.thread_count = "AUTO", num_threads

        def decoded(packet: av.Packet[av.stream.Stream] | None) -> Iterator[tuple[int, av.VideoFrame | None]]:
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError:
                yield -1, None
                return
            for frame in frames:
                yield frame.pts if frame.pts is not None else -1, frame

        for number, packet in enumerate(_demux(video, [stream])):
            packet.pts = number  # decoders hand it on to the packet's frame, in whatever order frames come
            if packet.size:  # an empty one would end the decoding
                yield from decoded(packet)
        yield from decoded(None)


def _frames(path: Path, stream: _Stream, *, is_wanted: Callable[[int], bool], last: int | None) -> Iterator[VideoFrame]:
    """Yield the wanted frames up to the number `last`, or the last one of the video."""
    numbers = stream.numbers
    end = numbers.num_frames if last is None else min(numbers.num_frames, last + 1)
    expected, converter = 0, VideoReformatter()
    for num_threads in (0, 1):  # on threads, damage to the last frames costs those that are decoded beside them
        for number, frame, is_damaged in _numbered(path, stream, num_threads=num_threads):
            if number < expected:
                continue
            yield from (stream.lost(lost) for lost in range(expected, min(number, end)) if is_wanted(lost))
            expected = number + 1
            if number < end and is_wanted(number):
                image = None if is_damaged else _displayed(frame, converter)
                yield VideoFrame(number, numbers.time_s(number), image, _DAMAGED if is_damaged else None)
            if expected >= end:
                return
        if not (numbers.by_packet[stream.packets.has_data] >= expected).any():
            break
    yield from (stream.lost(lost) for lost in range(expected, end) if is_wanted(lost))


def _numbered(path: Path, stream: _Stream, *, num_threads: int) -> Iterator[tuple[int, av.VideoFrame, bool]]:
    """Yield number, frame and whether it is damaged, in the order of numbers.

    Frames that follow a damaged one in the file are damaged, too, up to the next key frame or for `_SUSPECT_S`.
    """
    numbers, by_packet, is_key = stream.numbers, stream.numbers.by_packet, stream.packets.is_key
    in_turn, num_out = np.sort(by_packet[by_packet >= 0]), 0
    undecoded = dict.fromkeys(np.flatnonzero(stream.packets.has_data).tolist())  # in order
    suspects = range(0)
    number = -1
    for position, frame in _decode(path, stream.position, num_threads=num_threads):
        is_known = 0 <= position < len(by_packet)
        if frame is None or frame.is_corrupt:
            first = position if is_known else next(iter(undecoded), 0)
            undecoded.pop(first, None)
            keys = np.flatnonzero(is_key[first + 1 :])
            num_before_key = int(keys[0]) + 1 if len(keys) else len(is_key)
            suspects = range(first, first + min(num_before_key, max(1, round(_SUSPECT_S * numbers.fps))))
        if frame is None:
            num_out += 1
            continue
        if is_known and is_key[position]:  # what was sent to the decoder before it and is not out is lost
            while undecoded and next(iter(undecoded)) < position:
                undecoded.pop(next(iter(undecoded)))
            num_out = max(num_out, position - len(by_packet) + len(in_turn))
        undecoded.pop(position, None)
        if numbers.is_in_output_order:
            number = int(in_turn[min(num_out, len(in_turn) - 1)])
        else:
            number = int(by_packet[position]) if is_known else number + 1
        num_out += 1
        yield number, frame, position in suspects


def _display_axes(frame: av.VideoFrame) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return where the stored right and down point in the display, each as (right, down) of -1, 0, 1."""
    data = cast(Mapping[str, Buffer], frame.side_data).get("DISPLAYMATRIX")
    if data is None:
        return (1, 0), (0, 1)
    a, b, _, c, d = np.frombuffer(memoryview(data), "<i4")[:5].astype(np.float64)
    if abs(a) + abs(d) >= abs(b) + abs(c):  # the nearest quarter turn
        return (1 if a >= 0 else -1, 0), (0, 1 if d >= 0 else -1)
    return (0, 1 if b >= 0 else -1), (1 if c >= 0 else -1, 0)


def _displayed(frame: av.VideoFrame, converter: VideoReformatter) -> np.ndarray:
    """Return the frame's pixels as displayed, RGB uint8 (H, W, 3).

    converter: one for all frames of a video. `frame.to_ndarray(format=...)` makes one per frame, each with its threads.
    """
    image: np.ndarray = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    (x_right, x_down), (y_right, y_down) = _display_axes(frame)
    if not x_right:
        image = image.transpose(1, 0, 2)
    return np.ascontiguousarray(image[:: y_down or x_down, :: x_right or y_right])

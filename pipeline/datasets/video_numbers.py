"""Number the frames of a video from the times of its packets, without decoding.

1. Where the times lie on the grid of one rate, a frame's number is its time in frames since the start: a frame that is
   lost leaves its number empty and moves no other. Every AVI is such a stream: it counts frames, and has empty ones.
2. Elsewhere, where the rate varies, frames are counted in the order in which they are shown, damaged ones included.

The start is the earliest frame. If the stream does not start with a key frame, its start was cut away: then it is the
container's time zero. A video with edit lists starts where its edit starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_ROUNDING_S = 0.001  # containers round times to ticks or milliseconds
_MIN_REGULAR_FRAC = 0.75
_NOMINAL_FRAC = 0.005


@dataclass(frozen=True, kw_only=True)
class PacketTimes:
    """The packets of a video stream in the order of the file, which is the order of decoding; arrays (packets,)."""

    pts: np.ndarray
    """Time of display in ticks, float64; NaN where the file has none."""
    dts: np.ndarray
    """Time of decoding in ticks, float64; NaN where the file has none."""
    is_key: np.ndarray
    is_shown: np.ndarray
    """False for what an edit list cuts away."""
    has_data: np.ndarray
    tick_s: Fraction
    nominal_fps: float | None
    """As the file states it."""
    counts_frames: bool
    """Whether a tick is a frame, lost ones included: AVI."""
    starts_at_zero: bool
    """Whether the container's clock starts with the recording; broadcast streams have a clock of their own."""
    is_reordered: bool
    """Whether the decoder returns frames in another order than that of the packets."""


@dataclass(frozen=True, kw_only=True)
class FrameNumbers:
    """The numbers of a video's frames."""

    by_packet: np.ndarray
    """0-based number per packet, int64 (packets,); -1 if it is not shown."""
    num_frames: int
    fps: float
    """Frames per second; the average where the rate varies."""
    times_s: np.ndarray | None
    """Per frame since the first one, float64 (num_frames,), where the rate varies."""
    is_in_output_order: bool
    """The file has no times of display, and frames are reordered: the decoder's frames take the numbers in turn."""

    def time_s(self, number: int) -> float:
        """Return a frame's time since the first one, in s."""
        return number / self.fps if self.times_s is None else float(self.times_s[number])


def number_frames(packets: PacketTimes) -> FrameNumbers:
    """Number the frames of a stream with at least one shown packet."""
    shown = np.flatnonzero(packets.is_shown)
    pts, dts = packets.pts[shown], packets.dts[shown]
    if packets.counts_frames or np.isnan(pts).any():  # what FFmpeg calls the pts of an AVI is its guess
        pts = dts
    has_times = not np.isnan(pts).any()
    if not has_times:
        pts = np.arange(len(shown), dtype=np.float64)
    is_in_output_order = packets.is_reordered and len(set((pts - dts).tolist())) == 1
    order = np.argsort(pts, kind="stable")
    times = pts[order]
    grid = _numbers_on_grid(times, packets)
    if grid is None or not has_times:
        numbers, fps = np.arange(len(times)), _mean_fps(times, packets)
        times_s = (times - times[0]) * float(packets.tick_s) if has_times else None
    else:
        on_grid, period = grid
        numbers, times_s = on_grid + _num_lost_at_start(packets, times[0], period), None
        fps = _nominal_or(1 / (period * float(packets.tick_s)), packets)
    by_packet = np.full(len(packets.pts), -1)
    by_packet[shown[order]] = numbers
    return FrameNumbers(
        by_packet=by_packet,
        num_frames=int(numbers[-1]) + 1,
        fps=fps,
        times_s=times_s,
        is_in_output_order=is_in_output_order,
    )


def _numbers_on_grid(times: np.ndarray, packets: PacketTimes) -> tuple[np.ndarray, float] | None:
    """Return the sorted times' numbers from 0 and the period in ticks; None if they do not lie on one grid."""
    steps = np.diff(times)
    if not len(steps) or steps.min() <= 0:
        return None
    step = steps.min() if packets.counts_frames else np.median(steps)
    is_regular = np.abs(steps - step) < step / 2
    if not packets.counts_frames and is_regular.mean() < _MIN_REGULAR_FRAC:
        return None
    period, start = float(steps[is_regular].mean()), times[0]
    for _ in range(2):  # the second fit sees the numbers of the first
        numbers = np.rint((times - start) / period)
        period, start = np.polyfit(numbers, times, 1)
    numbers = np.rint((times - start) / period)
    rounding = max(1.0, _ROUNDING_S / float(packets.tick_s))
    if np.abs(times - start - numbers * period).max() > min(rounding, period / 4) or (np.diff(numbers) < 1).any():
        return None
    return (numbers - numbers[0]).astype(np.int64), float(period)


def _num_lost_at_start(packets: PacketTimes, first_time: float, period: float) -> int:
    is_cut = packets.counts_frames or (packets.starts_at_zero and not packets.is_key[0])
    return max(0, round(first_time / period)) if is_cut else 0


def _mean_fps(times: np.ndarray, packets: PacketTimes) -> float:
    duration_s = (times[-1] - times[0]) * float(packets.tick_s)
    has_duration = duration_s > 0 and not np.isnan(packets.pts[packets.is_shown]).any()
    return _nominal_or((len(times) - 1) / duration_s, packets) if has_duration else packets.nominal_fps or 1.0


def _nominal_or(fps: float, packets: PacketTimes) -> float:
    """Return the stated rate if the measured one is the same but for rounding."""
    nominal = packets.nominal_fps
    return nominal if nominal is not None and abs(nominal - fps) <= _NOMINAL_FRAC * fps else fps

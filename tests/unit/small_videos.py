"""Videos whose frames show their own number as eight bars, whole and damaged."""

from __future__ import annotations

import av
import numpy as np

WIDTH, HEIGHT = 128, 96
NUM_FRAMES = 40
GARBAGE = b"garbage" * 30


def draw_number(number):
    """RGB uint8: bars from left to right, bit 0 first, bright for 1."""
    bits = [(number >> bit) & 1 for bit in range(8)]
    return (
        np.repeat(np.where(np.repeat(bits, WIDTH // 8), 230, 25)[None, :, None], HEIGHT, 0)
        .repeat(3, 2)
        .astype(np.uint8)
    )


def read_number(image):
    columns = image[HEIGHT // 4 : 3 * HEIGHT // 4].mean((0, 2))
    side = WIDTH // 8
    return sum(int(columns[bit * side + 4 : (bit + 1) * side - 4].mean() > 128) << bit for bit in range(8))


def write_video(
    path,
    codec="mjpeg",
    *,
    num_frames=NUM_FRAMES,
    rate=25,
    change=lambda number, data: data,
    times=None,
    tick=None,
    turn=None,
    **options,
):
    """Write numbered frames; `change(packet, bytes)` gives a packet's bytes, or None to leave it out.

    times: of display, in units of `tick` s; default: constant rate. turn: degrees of the display matrix.
    """
    with av.open(str(path), "w") as video:
        stream = video.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        context = stream.codec_context
        context.gop_size, context.thread_count = 10, 1
        if codec != "libx264":
            stream.bit_rate = 4_000_000
        if tick is not None:
            stream.time_base = context.time_base = tick
        if turn is not None:
            stream.set_display_rotation(turn)
        number = 0
        for i in range(num_frames + 1):
            frame = av.VideoFrame.from_ndarray(draw_number(i), format="rgb24") if i < num_frames else None
            if frame is not None and times is not None:
                frame.pts, frame.time_base = times[i], tick
            for packet in stream.encode(frame):
                data = change(number, bytes(packet))
                number += 1
                if data is None:
                    continue
                new = av.Packet(data)
                new.stream, new.pts, new.dts, new.time_base = stream, packet.pts, packet.dts, packet.time_base
                new.is_keyframe, new.duration = packet.is_keyframe, packet.duration
                video.mux(new)
    return path


def only(number, becomes):
    """Return a `change` that replaces one packet, or leaves it out (None)."""
    return lambda n, data: becomes if n == number else data


def numbers_seen(frames):
    """Return the number that each frame shows by the number that it has; None for one without an image."""
    return {frame.number: None if frame.image is None else read_number(frame.image) for frame in frames}

"""Videos: a frame's number, what damage costs, rotation, which stream, and what is no video."""

from __future__ import annotations

import gc
from fractions import Fraction
from itertools import accumulate, islice
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.datasets import videos
from pipeline.datasets.videos import describe_video, iterate_video, read_video_frames
from pipeline.errors import DataError, DataNotFoundError
from tests.unit.small_videos import (
    GARBAGE,
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    draw_number,
    numbers_seen,
    only,
    read_number,
    write_video,
)

ALL = set(range(NUM_FRAMES))


def check(path, *, lost, num_frames=NUM_FRAMES):
    """All frames but the lost ones show their own number."""
    frames = list(iterate_video(path))
    assert [frame.number for frame in frames] == list(range(num_frames))
    seen = numbers_seen(frames)
    assert seen == {number: None if number in lost else number for number in range(num_frames)}
    assert all((frame.image is None) == (frame.reason is not None) for frame in frames)
    return frames


CODECS = [("mjpeg", {}), ("mpeg4", {}), ("mpeg4", {"bf": 2}), ("libx264", {"bf": 0}), ("libx264", {})]


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv", "ts"])
@pytest.mark.parametrize(("codec", "options"), [*CODECS[1:], ("libx264", {"x264-params": "open-gop=1:keyint=10"})])
def test_a_whole_video_has_every_frame_at_its_number(tmp_path, suffix, codec, options):
    frames = check(write_video(tmp_path / f"v.{suffix}", codec, **options), lost=())
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(NUM_FRAMES) / 25)


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_a_frame_that_was_never_recorded_leaves_its_number_empty(tmp_path, suffix):
    frames = check(write_video(tmp_path / f"v.{suffix}", change=only(5, None)), lost={5})
    assert frames[5].reason == "the video has no frame at this time"
    assert frames[6].time_s == pytest.approx(6 / 25)


def test_an_empty_packet_is_a_dropped_frame(tmp_path):
    check(write_video(tmp_path / "v.avi", "mpeg4", change=only(15, b"")), lost={15})


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_video_whose_first_key_frame_is_cut_keeps_its_numbers(tmp_path, suffix):
    check(
        write_video(tmp_path / f"v.{suffix}", "libx264", bf=0, sc_threshold=0, change=only(0, None)),
        lost=set(range(10)),
    )


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_of_a_varying_rate_are_counted(tmp_path, suffix):
    steps = np.random.default_rng(0).choice([20, 33, 40, 47, 60], NUM_FRAMES - 1).tolist()
    steps[20] = 900
    times = list(accumulate(steps, initial=0))
    path = write_video(tmp_path / f"v.{suffix}", "libx264", times=times, tick=Fraction(1, 1000))
    frames = check(path, lost=())
    assert [frame.time_s for frame in frames] == pytest.approx([time / 1000 for time in times], abs=1e-3)
    assert describe_video(path).fps == pytest.approx((NUM_FRAMES - 1) * 1000 / times[-1], rel=1e-3)


def test_times_in_milliseconds_lie_on_the_grid_of_a_rate(tmp_path):
    path = write_video(tmp_path / "v.mkv", num_frames=200, rate=Fraction(30000, 1001), change=only(90, None))
    check(path, lost={90}, num_frames=200)
    assert describe_video(path).fps == pytest.approx(30000 / 1001)


def test_a_video_may_start_late(tmp_path):
    path = write_video(tmp_path / "v.mkv", times=[5000 + 40 * i for i in range(NUM_FRAMES)], tick=Fraction(1, 1000))
    assert check(path, lost=())[0].time_s == 0


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
@pytest.mark.parametrize(("codec", "options"), CODECS)
def test_a_damaged_packet_costs_its_frame_and_those_that_build_on_it(tmp_path, suffix, codec, options):
    path = write_video(tmp_path / f"v.{suffix}", codec, change=only(15, GARBAGE), **options)
    seen = numbers_seen(iterate_video(path))
    assert list(seen) == list(range(NUM_FRAMES))
    assert all(shown in (None, number) for number, shown in seen.items())
    lost = [number for number, shown in seen.items() if shown is None]
    assert lost
    assert {13 <= number < 20 for number in lost} == {True}, "up to the next key frame"
    if codec == "mjpeg":
        assert lost == [15]


def test_data_that_the_decoder_conceals_is_no_image(tmp_path):
    def overwrite(number, data):
        half = len(data) // 2
        return data[:half] + b"\x5a" * (len(data) // 4) + data[half + len(data) // 4 :] if number == 15 else data

    path = write_video(tmp_path / "v.avi", "mpeg4", change=overwrite)
    frames = check(path, lost=set(range(15, 20)))
    assert {frame.reason for frame in frames[15:20]} == {"the video's data is damaged here"}


def test_without_key_frames_damage_costs_one_second(tmp_path):
    path = write_video(
        tmp_path / "v.avi", "mpeg4", num_frames=60, g=600, sc_threshold=1_000_000_000, change=only(5, GARBAGE)
    )
    seen = numbers_seen(iterate_video(path))
    assert [number for number, shown in seen.items() if shown is None] == list(range(5, 30))


@pytest.mark.parametrize(("codec", "options"), CODECS[:2])
def test_damage_at_the_end_costs_no_frame_before_it(tmp_path, codec, options):
    path = tmp_path / "v.avi"
    write_video(path, codec, change=lambda number, data: GARBAGE if number in (37, 39) else data, **options)
    lost = {37, 39} if codec == "mjpeg" else {37, 38, 39}
    check(path, lost=lost)


def test_wanted_frames_come_in_order_up_to_the_last(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.avi")
    converted = []
    monkeypatch.setattr(videos, "_displayed", lambda *_: converted.append(1) or draw_number(0))
    frames = list(read_video_frames(path, {7, 3, 99}))
    assert [frame.number for frame in frames] == [3, 7, 99]
    assert (frames[2].image, frames[2].reason) == (None, "the video has 40 frames")
    assert len(converted) == 2
    assert [frame.number for frame in islice(iterate_video(path, start=30), 2)] == [30, 31]
    assert len(converted) == 4


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_a_video_is_turned_as_players_do(tmp_path, turn):
    path = write_video(tmp_path / "v.mp4", "libx264", turn=turn)
    image = next(iterate_video(path, start=5)).image
    info = describe_video(path)
    upright = np.rot90(draw_number(5), turn // 90)  # of the display matrix: anticlockwise
    assert image.shape == upright.shape == (info.height, info.width, 3)
    assert info.rotation_deg == -turn % 360
    assert not info.is_mirrored
    assert np.abs(image.astype(int) - upright).mean() < 8


@pytest.mark.parametrize(("matrix", "turn"), [((-1, 0, 0, 1), 0), ((1, 0, 0, -1), 180), ((0, 1, 1, 0), 270)])
def test_a_mirrored_video_is_mirrored(tmp_path, matrix, turn):
    a, b, c, d = matrix
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        one = 1 << 16
        stream.set_display_matrix([a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30])
        for frame in [av.VideoFrame.from_ndarray(draw_number(5), format="rgb24"), None]:
            video.mux(stream.encode(frame))
    stored = draw_number(5)
    expected = stored.transpose(1, 0, 2) if a == 0 else stored[:: d or 1, :: a or 1]
    (frame,) = iterate_video(path)
    assert np.abs(frame.image.astype(int) - expected).mean() < 8
    info = describe_video(path)
    assert (info.rotation_deg, info.is_mirrored) == (turn, True)


def test_a_still_cover_is_not_the_video(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as video:
        streams = [video.add_stream("mjpeg", rate=25) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover, moving = streams
        video.mux(cover.encode(av.VideoFrame.from_ndarray(draw_number(255), format="rgb24")))
        for number in range(10):
            video.mux(moving.encode(av.VideoFrame.from_ndarray(draw_number(number), format="rgb24")))
        for stream in streams:
            video.mux(stream.encode())
    assert describe_video(path).num_frames == 10
    check(path, lost=(), num_frames=10)


def test_a_video_is_described(tmp_path):
    info = describe_video(write_video(tmp_path / "v.avi", change=only(5, None)))
    assert (info.num_frames, info.fps, info.width, info.height) == (NUM_FRAMES, 25, WIDTH, HEIGHT)
    assert (info.rotation_deg, info.is_mirrored) == (0, False)
    assert describe_video(write_video(tmp_path / "one.avi", num_frames=1)).num_frames == 1


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "v.avi"
    assert describe_video(write_video(path)).num_frames == NUM_FRAMES
    assert describe_video(write_video(path, num_frames=12)).num_frames == 12


def test_a_cut_file_has_its_frames_up_to_the_cut(tmp_path):
    path = write_video(tmp_path / "v.mkv", "mpeg4")
    path.write_bytes(path.read_bytes()[:2500])
    seen = numbers_seen(iterate_video(path))
    assert 5 < len(seen) < NUM_FRAMES
    assert all(shown in (None, number) for number, shown in seen.items())
    assert seen[5] == 5


def test_what_is_not_a_video_is_one_sentence(tmp_path):
    (tmp_path / "empty.avi").touch()
    (tmp_path / "text.txt").write_text("no video\n" * 100)
    video = write_video(tmp_path / "v.avi")
    (tmp_path / "cut.avi").write_bytes(video.read_bytes()[:300])
    with av.open(str(video)) as opened:
        (tmp_path / "image.jpg").write_bytes(bytes(next(opened.demux(video=0))))
    for name in ("empty.avi", "text.txt", "cut.avi", "image.jpg"):
        with pytest.raises(DataError, match=r"expected AVI, MP4 or MKV") as error:
            describe_video(tmp_path / name)
        assert str(tmp_path) in str(error.value)
    for name in ("missing.avi", ""):
        with pytest.raises(DataNotFoundError, match="is not a file; check the path"):
            iterate_video(tmp_path / name)


def test_a_video_without_a_frame_that_can_be_decoded(tmp_path):
    path = write_video(tmp_path / "v.avi", num_frames=3, change=lambda number, data: GARBAGE)
    with pytest.raises(DataError, match="no frame that can be decoded"):
        describe_video(path)
    assert numbers_seen(iterate_video(path)) == {0: None, 1: None, 2: None}


def test_bars_are_read_back():
    assert [read_number(draw_number(number)) for number in (0, 5, 255)] == [0, 5, 255]
    assert draw_number(3).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.mkv", "pcm_s16le"), ("a.avi", "mp3")])
def test_a_recording_without_images_is_named(tmp_path, name, codec):
    path = tmp_path / name
    with av.open(str(path), "w") as recording:
        stream = recording.add_stream(codec, rate=16000)
        silence = av.AudioFrame(format=stream.codec_context.format.name, layout="mono", samples=1024)
        silence.rate = 16000
        recording.mux(stream.encode(silence))
        recording.mux(stream.encode(None))
    with pytest.raises(DataError, match=f"{name} has no video frames; expected a video"):
        describe_video(path)


def test_a_title_of_any_bytes_costs_no_frame(tmp_path):
    path = write_video(tmp_path / "v.mkv")
    before = path.read_bytes()
    marker = b"Lavf"  # the name of the program that wrote it
    assert marker in before
    path.write_bytes(before.replace(marker, b"\xac\xff\xfe\x80"))
    assert describe_video(path).num_frames == NUM_FRAMES


def test_frames_that_are_read_leave_no_threads_behind(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, "libx264")
    frames = iterate_video(path)
    gc.disable()  # it would hide threads that a frame holds in a cycle
    try:
        next(frames)
        before = len(list(Path("/proc/self/task").iterdir()))
        held = list(frames)
        assert len(list(Path("/proc/self/task").iterdir())) <= before
    finally:
        gc.enable()
    assert len(held) == NUM_FRAMES - 1

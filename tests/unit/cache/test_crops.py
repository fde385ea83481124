import os

import cv2
import numpy as np
import pytest
import zarr

from pipeline.cache.crops import CropReader, plan_crops
from pipeline.config import CropConfig
from pipeline.datasets import sources
from pipeline.errors import DataError
from pipeline.faces.geometry import cut_crop, frame_from_crop
from pipeline.faces.views import ViewParams, render_view
from pipeline.runtime.atomic import file_sha256
from tests.unit import small_cache


def test_the_affine_equals_one_computed_by_hand():
    # width 100 + height 160 = 260, so the square is 200 px wide and a crop px is 200 / 256 = 0.78125 px of the frame
    affine = frame_from_crop(np.array([100, 40, 200, 200], np.float32), CropConfig())
    np.testing.assert_allclose(affine, [[0.78125, 0, 150 - 223.5 * 0.78125], [0, 0.78125, 120 - 223.5 * 0.78125]])
    np.testing.assert_allclose(affine @ [223.5, 223.5, 1], [150, 120])
    left_edge_of_square = affine @ [96 - 0.5, 223.5, 1]
    np.testing.assert_allclose(left_edge_of_square, [50, 120])


def test_a_crop_samples_the_frame_by_its_affine_and_is_zero_outside():
    y, x = np.indices((200, 240), np.float64)
    image = np.stack([x, y, np.full_like(x, 200)], -1).astype(np.uint8)
    affine = frame_from_crop(np.array([60, 50, 140, 150]), CropConfig())
    crop = cut_crop(image, affine, CropConfig())
    assert crop.shape == (448, 448, 3)
    for j, i in [(224, 224), (100, 300), (400, 120)]:
        frame_x, frame_y = affine @ [j, i, 1]
        np.testing.assert_allclose(crop[i, j], [frame_x, frame_y, 200], atol=1)
    far_x, far_y = affine @ [447, 447, 1]
    assert far_x < 239
    assert far_y > 201
    assert crop[447, 447].tolist() == [0, 0, 0]


def test_the_clean_view_is_the_square_that_the_paper_resizes():
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8), (0, 0), 3)
    affine = frame_from_crop(np.array([100, 80, 300, 340]), CropConfig())
    view = render_view(cut_crop(image, affine, CropConfig()), ViewParams(), view_px=256)
    side = (200 + 260) * 200 / 260
    first = np.array([200, 210]) - side / 2
    square = image[round(first[1]) : round(first[1] + side), round(first[0]) : round(first[0] + side)]
    expected = cv2.resize(square, (256, 256), interpolation=cv2.INTER_LINEAR)
    assert np.abs(view.astype(int) - expected).mean() < 1.5  # the square's corners are rounded to integers here


def test_crops_are_stored_with_their_affines_and_faceless_frames_are_listed(tmp_path):
    frames, boxes = small_cache.make_world(tmp_path)
    boxes.loc[3, ["x1", "status"]] = [np.nan, "no_face"]
    (tmp_path / "raw" / frames["source_file"][7]).write_bytes(b"not an image")
    (tmp_path / "raw" / frames["source_file"][9]).unlink()
    crops = small_cache.make_crops(tmp_path, frames, boxes)
    listed = crops.listed.set_index("frame_id").loc[frames["frame_id"]]
    assert listed["status"].value_counts().to_dict() == {"ok": 27, "no_face": 1, "unreadable": 1, "no_source": 1}
    assert listed["status"].iloc[[7, 9]].tolist() == ["unreadable", "no_source"]
    assert listed["row"].to_numpy()[[3, 7, 9]].tolist() == [-1, -1, -1]
    assert len(crops.index) == 27
    i = 12
    row = listed["row"].iloc[[i]].to_numpy()
    affine = frame_from_crop(boxes[["x1", "y1", "x2", "y2"]].to_numpy()[i], small_cache.CROP)
    np.testing.assert_array_equal(crops.read_affines(row)[0], affine)
    expected = cut_crop(small_cache.draw_image(i), affine, small_cache.CROP)
    np.testing.assert_array_equal(crops.read_crops(row)[0], expected)
    stored = zarr.open(crops.folder / "arrays.zarr", mode="r")
    np.testing.assert_array_equal(stored["crops"][row[0]], expected)
    arguments = {"images_root": tmp_path / "raw", "format": small_cache.CROPS_FORMAT}
    plan = plan_crops(tmp_path / "crops", frames, boxes, **arguments)
    assert (plan.units, plan.is_new) == ((), False)  # what cannot be read is not tried again
    assert small_cache.make_crops(tmp_path, frames, boxes).revision == 1


def test_only_changed_images_and_boxes_are_cut_again(tmp_path):
    frames, boxes = small_cache.make_world(tmp_path)
    first = small_cache.make_crops(tmp_path, frames, boxes)
    arguments = {"images_root": tmp_path / "raw", "format": small_cache.CROPS_FORMAT}
    assert not plan_crops(tmp_path / "crops", frames, boxes, **arguments).is_new

    touched, changed = (tmp_path / "raw" / frames["source_file"][i] for i in (0, 1))
    os.utime(touched, ns=(1, 1))
    cv2.imwrite(str(changed), small_cache.draw_image(99))
    boxes.loc[2, "x2"] += 1
    plan = plan_crops(tmp_path / "crops", frames, boxes, **arguments)
    assert plan.num_dropped == 2
    assert {row for unit in plan.units for row in plan.rows_in(unit.block)["frame_id"]} == set(frames["frame_id"][1:3])
    second = small_cache.make_crops(tmp_path, frames, boxes)
    assert second.revision == 2
    old, new = (each.index.set_index("frame_id") for each in (first, second))
    same = frames["frame_id"].drop([1, 2])
    assert old.loc[same, "row"].equals(new.loc[same, "row"])
    assert new.loc[frames["frame_id"][1:3], "row"].min() > old["row"].max()
    np.testing.assert_array_equal(
        first.read_crops(first.index["row"]), CropReader(first.folder, revision=1).read_crops(first.index["row"])
    )


def write_bitmap(path, seed):
    """A image that has as many bytes as any other."""
    path.write_bytes(cv2.imencode(".bmp", small_cache.draw_image(seed)[..., ::-1])[1].tobytes())


def test_a_replaced_image_of_equal_size_costs_its_own_crop_and_features_and_a_touched_one_none(tmp_path):
    frames, boxes = small_cache.make_world(tmp_path)
    replaced, touched = (tmp_path / "raw" / frames["source_file"][i] for i in (1, 2))
    write_bitmap(replaced, 1)
    size = replaced.stat().st_size
    first_crops = small_cache.make_crops(tmp_path, frames, boxes)
    first = small_cache.make_cache(tmp_path, frames, first_crops)
    name = frames["frame_id"][1]
    old = first.read(first.index.loc[first.index["frame_id"] == name, "row"].to_numpy())["lf"][0]

    write_bitmap(replaced, 99)
    assert replaced.stat().st_size == size
    os.utime(touched, ns=(1, 1))
    seen = []

    def extractor(images):
        seen.append(len(images))
        return small_cache.extract(images)

    arguments = {"images_root": tmp_path / "raw", "format": small_cache.CROPS_FORMAT}
    plan = plan_crops(tmp_path / "crops", frames, boxes, **arguments)
    assert [row for unit in plan.units for row in plan.rows_in(unit.block)["frame_id"]] == [name]
    crops = small_cache.make_crops(tmp_path, frames, boxes)
    second = small_cache.make_cache(tmp_path, frames, crops, extractor=extractor)
    assert seen == [1] * small_cache.VIEWS.num_views
    row = crops.index.set_index("frame_id").loc[[name], "row"].to_numpy()
    affine = frame_from_crop(boxes[["x1", "y1", "x2", "y2"]].to_numpy()[1], small_cache.CROP)
    np.testing.assert_array_equal(
        crops.read_crops(row)[0], cut_crop(small_cache.draw_image(99), affine, small_cache.CROP)
    )
    new = second.read(second.index.loc[second.index["frame_id"] == name, "row"].to_numpy())["lf"][0]
    assert not np.array_equal(old, new)
    others = frames["frame_id"].drop(1)
    rows = [each.index.set_index("frame_id").loc[others, "row"] for each in (first, second)]
    assert rows[0].equals(rows[1])
    assert crops.index.set_index("frame_id").loc[frames["frame_id"][2], "source_mtime_ns"] == 1


def test_a_image_is_read_again_where_its_size_or_its_time_changed_and_else_not(tmp_path, monkeypatch):
    frames, boxes = small_cache.make_world(tmp_path)
    replaced, touched, grown = (tmp_path / "raw" / frames["source_file"][i] for i in (1, 2, 3))
    write_bitmap(replaced, 1)
    small_cache.make_crops(tmp_path, frames, boxes)
    write_bitmap(replaced, 99)
    os.utime(touched, ns=(1, 1))
    status = grown.stat()
    grown.write_bytes(grown.read_bytes() + b"more")
    os.utime(grown, ns=(status.st_atime_ns, status.st_mtime_ns))
    read = []

    def noted(path):
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr(sources, "file_sha256", noted)
    plan_crops(tmp_path / "crops", frames, boxes, images_root=tmp_path / "raw", format=small_cache.CROPS_FORMAT)
    assert sorted(read) == [replaced, touched, grown]


def test_frames_of_a_video_are_cut_too(tmp_path):
    frames = small_cache.make_frames(num_subjects=2).assign(source_frame=lambda t: t["frame"])
    frames["source_file"] = frames["subject"] + ".avi"
    (tmp_path / "raw").mkdir()
    for seed, file in enumerate(frames["source_file"].unique()):
        video = cv2.VideoWriter(str(tmp_path / "raw" / file), cv2.VideoWriter.fourcc(*"MJPG"), 20, (80, 60))
        for i in range(5):
            video.write(np.full((60, 80, 3), 40 * i + 20 * seed, np.uint8))
        video.release()
    crops = small_cache.make_crops(tmp_path, frames, small_cache.make_boxes(frames))
    middle = crops.read_crops(crops.index.set_index("frame_id").loc[frames["frame_id"], "row"])[:, 28, 28, 0]
    np.testing.assert_allclose(middle, [40 * i + 20 * seed for seed in range(2) for i in range(5)], atol=2)


def test_tables_of_different_frames_are_refused(tmp_path):
    frames, boxes = small_cache.make_world(tmp_path)
    with pytest.raises(DataError, match="list different frames; run `fantrans refresh`"):
        small_cache.make_crops(tmp_path, frames, boxes.iloc[::-1].reset_index(drop=True))

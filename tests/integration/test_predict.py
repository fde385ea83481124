"""`fantrans predict` on raw images and videos of rendered faces, with real networks and a trained head."""

import io
import json
import os
import shutil
from contextlib import redirect_stdout

import av
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import fantrans as package
from models.fan import FAN
from pipeline.catalog import CATALOG_FILE, WeightsEntry, load_catalog
from pipeline.datasets.images import read_image
from pipeline.datasets.videos import iterate_video
from pipeline.errors import UsageError
from pipeline.predict.inputs import find_sources
from pipeline.predict.job import JobWorker, predict_to_file
from pipeline.predict.model import FaceReader, find_model, open_model
from pipeline.predict.stream import Options
from pipeline.runtime.atomic import file_sha256
from pipeline.training.predict import count
from pipeline.training.run_files import finished_folds, read_counts, read_predictions
from tests.command_line import fantrans
from tests.processes import make_process
from tests.steps import watch_steps

CATALOG = """roots: {{work: work, cache: cache, runs: runs}}
datasets:
  faces: {{root: raw, layout: bp4d, protocol: rendered_bp4d}}
weights:
  tiny: {weights}
"""
EXPERIMENT = """base: demo
cache: {views: {num_views: 3}, features: {weights: tiny}, crop: {side_per_box_frac: 0.7}, detector: {max_side_px: 160}}
train: {num_epochs: 1, batch_size: 4, averages_flip: true}
parts: [P1]
"""
FPS, NUM_FRAMES, CHUNK_FRAMES = 20, 30, 8


def write_tiny_fan(folder):
    torch.manual_seed(0)
    path = folder / "tiny.safetensors"
    save_file(FAN(16).state_dict(), path)
    shape = {"family": "fan", "width": 16, "num_stacks": 2, "pooling": "avg"}
    return WeightsEntry(path=path, sha256=file_sha256(path), **shape).model_dump_json(exclude_none=True)


def write_video(path, images):
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=FPS, options={"crf": "16"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        video.mux(stream.encode(None))


def draw_people(images, *, num_frames):
    """Two people who move, then neither, then the left one."""
    blank = np.full_like(images[0], 60)

    def seen(i):
        third = 3 * i // num_frames
        left = np.roll(images[0], 2 * i % 20, 1) if third != 1 else blank
        return np.hstack([left, np.roll(images[1], i % 10, 0) if third == 0 else blank])

    return [seen(i) for i in range(num_frames)]


class World:
    def __init__(self, folder):
        from pipeline.refresh.stages import refresh_cache
        from pipeline.synthetic.dataset import write_dataset
        from pipeline.training.trainer import train_folds

        self.folder = folder
        sizes = {"num_subjects": 6, "num_tasks": 2, "num_frames": 1, "size_px": 192}
        write_dataset(folder / "raw", layout="bp4d", seed=5, **sizes)
        (folder / "data_catalog.yaml").write_text(CATALOG.format(weights=write_tiny_fan(folder)))
        (folder / "small.yaml").write_text(EXPERIMENT)
        refresh_cache("faces", experiment=str(folder / "small.yaml"), device="cpu")
        (self.run,) = train_folds(str(folder / "small.yaml"), dataset="faces", device="cpu")
        self.images = sorted((folder / "raw/BP4D-training").rglob("*.jpg"))
        self.video = folder / "two.mp4"
        pixels = [read_image(path) for path in (self.images[0], self.images[4])]
        write_video(self.video, draw_people(pixels, num_frames=NUM_FRAMES))

    def worker(self, **options):
        catalog = load_catalog()
        opened = open_model(find_model(catalog, self.run.name), catalog)
        return JobWorker(opened, "cpu", Options(chunk_frames=CHUNK_FRAMES, **options))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FANTRANS_CATALOG", str(folder / "data_catalog.yaml"))
        yield World(folder)


@pytest.fixture(scope="module")
def predicted(world):
    """The rows of the video, and the file that holds them."""
    out = world.folder / "two.csv"
    summary = predict_to_file(world.worker(), find_sources([world.video]), out, format="fantrans")
    assert summary.unreadable == []
    return pd.read_csv(out), out


def test_raw_images_get_the_predictions_and_the_f1_of_the_run(world):
    (fold,) = finished_folds(world.run).values()
    ours = read_predictions(fold)
    index = pd.read_parquet(world.folder / "work/faces/frames.parquet").set_index("frame_id")
    files = [str(world.folder / "raw" / file) for file in index.loc[ours["frame_id"], "source_file"]]
    table = package.predict(files, world.run, faces="largest")
    assert table["input"].tolist() == files
    names = [name for name in ours if name.startswith("p_")]
    np.testing.assert_allclose(table[names], ours[names], atol=1e-4)
    aus = tuple(int(name.removeprefix("p_")) for name in names)
    again = count(ours.assign(**{name: table[name] for name in names}), aus=aus, test_part="P1")
    pd.testing.assert_frame_equal(again, read_counts(fold), check_dtype=False)
    assert (table[[f"au_{au:02d}" for au in aus]].to_numpy() == (ours[names].to_numpy() >= 0.5)).all()


def test_a_video_gives_a_row_per_person_and_frame_and_keeps_the_frames_without_a_face(predicted):
    rows, _ = predicted
    third = NUM_FRAMES // 3
    assert rows["frame"].unique().tolist() == list(range(NUM_FRAMES))
    np.testing.assert_allclose(rows["timestamp_s"], rows["frame"] / FPS, atol=1e-3)
    both, none, one = (rows[rows["frame"].between(i * third, (i + 1) * third - 1)] for i in range(3))
    assert both.groupby("frame").size().tolist() == [2] * third
    is_left = both["x1"] < 150
    assert both.loc[is_left, "face_id"].nunique() == both.loc[~is_left, "face_id"].nunique() == 1
    assert none["status"].tolist() == ["no_face"] * third
    assert none.filter(regex="^(p_|au_|x1|score|face_id)").isna().all(axis=None)
    assert one["status"].tolist() == ["ok"] * third
    assert (one["x1"] < 150).all()


def predict_until(folder, run, video, out, step):
    """In a process of its own: predict a video, killed before a step."""
    import os

    os.environ["FANTRANS_CATALOG"] = f"{folder}/data_catalog.yaml"
    catalog = load_catalog()
    worker = JobWorker(open_model(find_model(catalog, run), catalog), "cpu", Options(chunk_frames=CHUNK_FRAMES))
    watch_steps(kill_before=step, verbs=("rename",))
    predict_to_file(worker, find_sources([video]), out, format="fantrans")


@pytest.mark.parametrize("step", ["rename killed.csv.part/N-N.parquet#3", "rename world0/killed.csv#1"])
def test_a_killed_run_continues_with_an_equal_file(world, predicted, step):
    out = world.folder / "killed.csv"
    step = step.replace("world0", step_folder(world.folder))
    arguments = (world.folder, world.run.name, world.video, out, step)
    process = make_process(target=predict_until, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == -9
    assert not out.exists()
    chunks = sorted((world.folder / "killed.csv.part").glob("0*.parquet"))
    assert len(chunks) == (2 if "parquet" in step else 4)
    before = {path: path.stat().st_mtime_ns for path in chunks}
    replaced = []
    with pytest.MonkeyPatch.context() as patch:
        rename = type(out).replace
        patch.setattr(type(out), "replace", lambda old, new: (replaced.append(new), rename(old, new))[1])
        predict_to_file(world.worker(), find_sources([world.video]), out, format="fantrans")
    assert not before.keys() & set(replaced), "finished chunks are not computed again"
    assert out.read_bytes() == predicted[1].read_bytes()
    assert not list(world.folder.glob("*killed.csv?*")), "neither chunks nor temporary files are left"
    out.unlink()


def step_folder(folder):
    from tests.steps import step_name

    return step_name(folder / "killed.csv").split("/")[0]


def test_chunks_of_other_options_are_kept_unless_forced(world, tmp_path):
    out, part = tmp_path / "au.csv", tmp_path / "au.csv.part"
    part.mkdir()
    (part / "run.json").write_text('{"version": 0}')
    (part / "000000-000000.parquet").write_bytes(b"of another run")
    ended = fantrans("predict", world.images[0], "--model", world.run, "--out", out)
    assert (ended.status, out.exists()) == (2, False)
    assert "holds unfinished predictions of other inputs" in ended.err
    assert (part / "000000-000000.parquet").exists()
    assert fantrans("predict", world.images[0], "--model", world.run, "--out", out, "--force").status == 0
    assert len(pd.read_csv(out)) == 1
    ended = fantrans("predict", world.images[0], "--model", world.run, "--out", out)
    assert (ended.status, f"{out} exists; pass --force" in ended.err) == (2, True)


def test_processes_write_the_same_file_as_one(world, tmp_path):
    inputs = find_sources([world.video, world.images[0], world.video.parent / "raw/BP4D-training/F001"], recursive=True)
    few = world.worker(every=10)
    predict_to_file(few, inputs, tmp_path / "one.csv", format="fantrans")
    predict_to_file(few, inputs, tmp_path / "two.csv", format="fantrans", num_workers=2)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    table = pd.read_csv(tmp_path / "one.csv")
    assert table.loc[table["input"] == str(world.video), "frame"].unique().tolist() == [0, 10, 20]


def test_stdout_gets_the_rows_of_the_file_and_largest_keeps_one_face(world, tmp_path):
    words = ("predict", world.video, "--model", world.run.name, "--every", 5, "--faces", "largest")
    out = tmp_path / "au.csv"
    ended = fantrans(*words, "--out", out)
    assert (ended.status, ended.out) == (
        0,
        f"{out}: 4 faces in 6 frames of 1 input; 2 frames without a face, 0 unreadable\n",
    )
    assert fantrans(*words, "--out", "-").out == out.read_text()
    summary = fantrans(*words, "--out", tmp_path / "au.parquet", "--json", "--format", "openface")
    assert json.loads(summary.out)["num_faces"] == 4
    assert pd.read_parquet(tmp_path / "au.parquet")["success"].sum() == 4


def test_faces_below_the_lowest_score_are_left_out(world):
    images = [str(path) for path in world.images]
    scores = package.predict(images, world.run)["score"]
    limit = float(scores.median())
    found = package.predict(images, world.run, min_score=limit)
    assert found["score"].dropna().tolist() == scores[scores >= limit].tolist()
    assert found["input"].unique().tolist() == images
    assert (found.loc[found["score"].isna(), "status"] == "no_face").all()
    assert 0 < found["score"].notna().sum() < scores.notna().sum()
    with pytest.raises(UsageError, match=r"min_score of 0 to 1; found .*min_score=50"):
        package.predict(images, world.run, min_score=50)


def test_behind_a_link_the_linked_file_is_written(world, tmp_path):
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert fantrans("predict", world.images[0], "-m", world.run, "--out", tmp_path / "link.csv").status == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert len(pd.read_csv(tmp_path / "real.csv")) == 1


def test_a_name_that_is_not_utf8_is_written_as_escapes_and_refused_for_an_output(world, tmp_path):
    odd = tmp_path / os.fsdecode(b"odd\xff.jpg")
    shutil.copy(world.images[0], odd)
    ended = fantrans("predict", tmp_path, "-m", world.run, "--out", tmp_path / "au.csv", "--overlay", tmp_path / "o")
    assert ended.status == 0, ended.err
    assert pd.read_csv(tmp_path / "au.csv")["input"].tolist() == [f"{tmp_path}/odd\\xff.jpg"]
    assert [os.fsencode(path.name) for path in (tmp_path / "o").iterdir()] == [b"odd\xff.png"]
    ended = fantrans("predict", odd, "-m", world.run, "--out", tmp_path / os.fsdecode(b"\xff.csv"))
    assert (ended.status, "is not UTF-8; rename the file" in ended.err) == (1, True)


def test_overlays_are_written_and_read_back(world, tmp_path, predicted):
    drawn = tmp_path / "drawn.mp4"
    ended = fantrans("predict", world.video, "-m", world.run, "--out", tmp_path / "au.csv", "--overlay", drawn)
    assert ended.status == 0, ended.err
    pairs = list(zip(iterate_video(world.video), iterate_video(drawn), strict=True))
    assert len(pairs) == NUM_FRAMES
    np.testing.assert_allclose([b.time_s for _, b in pairs], [a.time_s for a, _ in pairs], atol=1e-3)
    rows = predicted[0]
    changes = []
    for before, after in pairs:
        assert after.image.shape == before.image.shape
        changes.append(np.abs(after.image.astype(int) - before.image).mean())
    has_face = rows.groupby("frame")["status"].first().eq("ok").to_numpy()
    assert np.array(changes)[has_face].min() > 3 * np.array(changes)[~has_face].max()
    box = rows.loc[rows["frame"] == 0, ["x1", "y1", "x2", "y2"]].iloc[0].round().astype(int).tolist()
    red, _, blue = pairs[0][1].image[(box[1] + box[3]) // 2, box[0]].astype(int)
    assert red > 150 > blue, "the side of the box is orange"

    folder = tmp_path / "images"
    ended = fantrans("predict", *world.images[:2], "-m", world.run, "--out", tmp_path / "im.csv", "--overlay", folder)
    assert ended.status == 0, ended.err
    assert len(list(folder.iterdir())) == 2
    assert all(cv2.imread(str(path)).shape == (192, 192, 3) for path in folder.iterdir())


def test_what_cannot_be_read_has_a_row_and_is_named_at_the_end(world, tmp_path):
    (tmp_path / "damaged.jpg").write_bytes(world.images[0].read_bytes()[:500])
    (tmp_path / "damaged.mp4").write_bytes(b"not a video")
    inputs = (tmp_path / "damaged.jpg", tmp_path / "damaged.mp4", world.images[0])
    ended = fantrans("predict", *inputs, "-m", world.run, "--out", tmp_path / "au.csv", "--overlay", tmp_path / "drawn")
    assert ended.status == 1
    assert f"2 of 3 inputs cannot be read: {inputs[0]}, {inputs[1]}; the output lists them" in ended.err
    assert "Traceback" not in ended.err
    assert pd.read_csv(tmp_path / "au.csv")["status"].tolist() == ["unreadable", "unreadable", "ok"]
    assert len(list((tmp_path / "drawn").iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{image}x", "--out", "{out}.csv"], "does not exist; did you mean"),
        (["{image}", "--out", "{out}.txt"], "has no known suffix"),
        (["{image}", "--out", "{out}/gone/au.csv"], "create it with `mkdir -p"),
        (["{image}", "--out", "-", "--workers", "2"], "--workers has no effect with --out -"),
        (["{image}", "--out", "{out}.csv", "--overlay", "{out}.mp4"], "is an image; name a folder with --overlay"),
        (["{video}", "--out", "{out}.csv", "--overlay", "{video}"], "would replace the input"),
        (["{image}", "--out", "{out}.csv", "--model", "{run}x"], "does not exist"),
        (["{image}", "--out", "{out}.csv", "--part", "P2"], "has no finished fold P2; finished: P1"),
        (["{image}", "--out", "{out}.csv", "--format", "of"], "format 'of' does not exist"),
    ],
)
def test_wrong_words_are_one_sentence(world, tmp_path, words, sentence):
    values = {"image": world.images[0], "video": world.video, "out": tmp_path / "au", "run": world.run.name}
    words = [word.format(**values) for word in words]
    ended = fantrans("predict", *words, *([] if "--model" in words else ["--model", world.run]))
    assert ended.status == 2, ended.err
    assert sentence in ended.err.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_a_model_whose_networks_are_not_in_the_catalog_names_the_commands(world, tmp_path, monkeypatch):
    exported = tmp_path / "exported"
    shutil.copytree(world.run / "fold-P1/deployed", exported)
    monkeypatch.setenv("FANTRANS_CATALOG", str(CATALOG_FILE))
    ended = fantrans("predict", world.images[0], "--model", exported, "--out", tmp_path / "au.csv")
    assert ended.status == 2
    assert "`fantrans weights fetch`" in ended.err
    assert not (tmp_path / "au.csv").exists()


def test_an_export_predicts_the_same_in_python_and_as_one_onnx_file(world, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = tmp_path / "exported"
    ended = fantrans("export", world.run, "--out", exported, "--whole")
    assert ended.status == 0, ended.err
    description = json.loads((exported / "head.json").read_bytes())
    assert (description["version"], description["detector"]["max_side_px"]) == (2, 160)
    assert description["crop"]["side_per_box_frac"] == 0.7
    image = read_image(world.images[0])
    table = package.predict([world.images[0], image], exported)
    assert table["input"].tolist() == [str(world.images[0]), "image 0"]
    pd.testing.assert_series_equal(*(table.drop(columns="input").T[i] for i in (0, 1)), check_names=False)

    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
    metadata = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    crop = metadata["crop"]
    assert (crop["size_px"], crop["side"]) == (256, "(width + height) * 0.7")
    x1, y1, x2, y2 = table[["x1", "y1", "x2", "y2"]].iloc[0]
    px = (x2 - x1 + y2 - y1) * 0.7 / 256
    corner = np.array([x1 + x2, y1 + y2]) / 2 - (256 - 1) / 2 * px
    affine = np.column_stack([np.eye(2) * px, corner])
    face = cv2.warpAffine(image, affine, (256, 256), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    (probabilities,) = session.run(None, {"crop": face.transpose(2, 0, 1)[None]})
    expected = table.iloc[0][[f"p_{au:02d}" for au in metadata["aus"]]].to_numpy(float)
    np.testing.assert_allclose(probabilities[0], expected, atol=0.02)  # bf16 and int8 there, fp32 here


def test_a_face_has_the_same_bytes_in_any_company(world):
    """97 faces: in an array of another length a value has another place, for which a kernel may round otherwise."""
    catalog = load_catalog()
    reader = FaceReader(open_model(find_model(catalog, world.run.name), catalog), "cpu")
    views = np.random.default_rng(0).integers(0, 256, (97, 256, 256, 3), np.uint8)
    together, _ = reader.read(views, views[:, :, ::-1])
    for start in (0, 1, 30):
        alone, _ = reader.read(views[start : start + 7], views[start : start + 7, :, ::-1])
        assert alone.tobytes() == together[start : start + 7].tobytes()


def test_landmarks_are_those_of_the_face_in_px_of_the_image(world, tmp_path):
    """With the shipped FAN, since the tiny one has learned nothing; its head has not either."""
    from models.fan_trans import FanTransHead
    from models.head_shape import HeadShape
    from pipeline.training.export import write_deployed
    from pipeline.training.heads import describe_shape

    entry = load_catalog().get_weights("fan-64")
    head = FanTransHead(HeadShape.resolved(fan_width=64, num_aus=2, dim=8, num_blocks=1)).eval()
    features = entry.model_dump(exclude={"path", "codec"}, exclude_none=True) | {
        "profile": "standard",
        "precision": "fp32",
        "shapes": {"lf": [64, 64, 64], "h1": [64, 64, 64], "h2": [64, 64, 64], "hm": [68, 64, 64]},
    }
    shape = describe_shape(head.shape)
    write_deployed(tmp_path / "m", head.deployed(), shape, aus=(1, 2), features=features, averages_flip=False)
    out = tmp_path / "au.parquet"
    ended = fantrans("predict", world.images[0], "--model", tmp_path / "m", "--out", out, "--format", "py-feat")
    assert ended.status == 0, ended.err
    assert "is of an earlier version, without the settings of detector and crop" in ended.err
    row = pd.read_parquet(out).iloc[0]
    truth = pd.read_parquet(world.folder / "raw/truth.parquet").set_index("frame_id")
    subject, task, _ = world.images[0].parts[-3:]
    points = np.array([row[[f"x_{i}", f"y_{i}"]] for i in range(68)], float)
    expected = truth.loc[f"{subject}/{task}/{int(world.images[0].stem)}", "landmarks_xy"].reshape(68, 2)
    assert np.linalg.norm(points - expected, axis=1).mean() < 4


def test_a_stream_that_is_closed_early_is_no_defect(world):
    with redirect_stdout(io.StringIO()):
        rows = world.worker().predict_images([("a", read_image(world.images[0]))] * 3)
        assert len(next(rows)) == 3

import json
import shutil

import pandas as pd
import pytest

from pipeline.cache.codecs import make_codec
from pipeline.cache.format import features_format
from pipeline.catalog import Catalog, DatasetEntry, Roots, WeightsEntry
from pipeline.config import ExperimentConfig, TrainConfig
from pipeline.datasets.index import INDEX_NAME
from pipeline.datasets.origin import describe_origin, write_origin
from pipeline.errors import ConfigError, DataError, StoreError, UsageError
from pipeline.fingerprint import cache_document, map_shapes
from pipeline.protocols import PROTOCOLS
from pipeline.store.writer import open_writer
from pipeline.tables import FRAME_COLUMNS, au_column, write_table
from pipeline.training import loader, runs
from pipeline.training.run_files import find_run, finished_folds, read_run, run_folder
from pipeline.training.runs import Runs, fold_parts, write_record

EXPERIMENT = ExperimentConfig.model_validate(
    {
        "name": "small",
        "refresh_args": "small.yaml",
        "cache": {"views": {"num_views": 2}, "features": {"weights": "tiny"}},
    }
)
AUS = PROTOCOLS["rendered_bp4d"].aus


def changed(experiment, **settings):
    """An experiment with other settings, by section."""
    content = experiment.model_dump()
    for section, values in settings.items():
        content[section] = {**content[section], **values} if isinstance(values, dict) else values
    return ExperimentConfig.model_validate(content)


BF16 = changed(EXPERIMENT, cache={"features": {"weights": "tiny", "precision": "bf16"}})


def make_frames(num_frames=2):
    rows = [
        (f"F{s:03d}/T1/{i}", f"F{s:03d}", "T1", i, f"F{s:03d}/{i}.png", -1, f"P{s % 3 + 1}")
        for s in range(3)
        for i in range(num_frames)
    ]
    labels = pd.DataFrame(0, index=range(len(rows)), columns=[au_column(au) for au in AUS], dtype="Int8")
    return pd.concat([pd.DataFrame(rows, columns=FRAME_COLUMNS), labels], axis=1)


def write_labels(catalog, frames):
    write_table(catalog.work_folder("small") / INDEX_NAME, frames)


def write_cache(catalog, experiment, frames):
    """A cache of three views that lists these frames and holds no value: a run's name depends on its tables alone."""
    document = cache_document(experiment.cache, catalog)
    codec = make_codec("standard", map_shapes(catalog.get_weights("tiny")))
    format = features_format(document, codec, block_rows=4)
    with open_writer(format.folder_in(catalog.caches_folder("small")), format) as writer:
        wanted = frames[["frame_id", "part"]].assign(key="", status="no_face")
        writer.publish(writer.plan(wanted, ["view_00", "view_01", "view_02"]), provenance={})


def make_catalog(folder):
    """A catalog of one data set, with all that is written below `folder`."""
    tiny = {"family": "fan", "width": 4, "num_stacks": 2, "pooling": "avg"}
    detector = {"path": folder / "detector", "sha256": "cd" * 32, "family": "retinaface-mobilenet"}
    return Catalog(
        roots=Roots(work=folder / "work", cache=folder / "cache", runs=folder / "runs"),
        datasets={"small": DatasetEntry(root=folder / "raw", layout="bp4d", protocol="rendered_bp4d")},
        weights={
            "tiny": WeightsEntry(path=folder / "tiny", sha256="ab" * 32, **tiny),
            "retinaface-mobilenet": WeightsEntry(**detector),
        },
    )


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory):
    """What a refresh leaves for six frames and two settings of the cache."""
    folder = tmp_path_factory.mktemp("refreshed")
    catalog = make_catalog(folder)
    write_labels(catalog, make_frames())
    for experiment in (EXPERIMENT, BF16):
        write_cache(catalog, experiment, make_frames())
    return folder


@pytest.fixture
def catalog(refreshed, tmp_path):
    """A catalog whose data set has labels and two caches, to do with as a test likes."""
    shutil.copytree(refreshed, tmp_path, dirs_exist_ok=True)
    return make_catalog(tmp_path)


def resolve(catalog, experiment=EXPERIMENT, **more):
    return Runs(catalog, "small", **more).resolve(experiment)


def test_labels_that_changed_since_the_refresh_are_refused(catalog, tmp_path):
    codes = tmp_path / "raw/AUCoding/AU_OCC/F001_T1.csv"
    codes.parent.mkdir(parents=True)
    codes.write_text("0,1\n")
    entry = catalog.get_dataset("small")
    origin = describe_origin(entry.root, entry.raw_layout, entry, protocol=entry.protocol, known=None)
    write_origin(catalog.work_folder("small"), origin)
    resolve(catalog)
    codes.write_text("0,1\n1,1\n")
    with pytest.raises(DataError, match=r"F001_T1.csv has changed since the labels of small were indexed; run `fantra"):
        resolve(catalog)


# --- every setting that decides the result names another run, and nothing else does


def another_head(catalog, monkeypatch):
    return resolve(catalog, changed(EXPERIMENT, head={"num_blocks": 1}))


def another_training(catalog, monkeypatch):
    return resolve(catalog, changed(EXPERIMENT, train={"lr": 2e-4}))


def another_cache(catalog, monkeypatch):
    return resolve(catalog, BF16)


def another_revision(catalog, monkeypatch):
    write_cache(catalog, EXPERIMENT, make_frames()[1:])
    return resolve(catalog)


def another_number_of_views(catalog, monkeypatch):
    return resolve(catalog, changed(EXPERIMENT, cache={"views": {"num_views": 3}, "features": {"weights": "tiny"}}))


def other_pages(catalog, monkeypatch):
    monkeypatch.setattr(loader, "MAX_PAGE_ROWS", 64)
    return resolve(catalog)


def other_labels(catalog, monkeypatch):
    frames = make_frames()
    frames.loc[3, "au_12"] = 1
    write_labels(catalog, frames)
    return resolve(catalog)


def other_action_units(catalog, monkeypatch):
    entry = catalog.get_dataset("small").model_copy(update={"layout": "disfa", "protocol": "rendered_disfa"})
    return resolve(catalog.model_copy(update={"datasets": {"small": entry}}))


def another_start(catalog, monkeypatch):
    source = resolve(catalog, changed(EXPERIMENT, train={"num_epochs": 1}))
    write_record(source)
    return resolve(catalog, init_from=source.folder.name)


def another_version(catalog, monkeypatch):
    monkeypatch.setattr(runs, "RUN_VERSION", runs.RUN_VERSION + 1)
    return resolve(catalog)


CHANGES = {
    "head": another_head,
    "train": another_training,
    "cache": another_cache,
    "index": another_revision,
    "num_views": another_number_of_views,
    "pages": other_pages,
    "labels": other_labels,
    "aus": other_action_units,
    "init_from": another_start,
    "version": another_version,
}


def test_each_part_of_a_runs_document_has_a_test_here(catalog):
    assert resolve(catalog).record.keys() == {*CHANGES, "revision"}


@pytest.mark.parametrize("key", CHANGES)
def test_what_decides_the_result_names_another_run_and_putting_it_back_the_same_one(catalog, monkeypatch, key):
    before = resolve(catalog)
    other = CHANGES[key](catalog, monkeypatch)
    differing = {name for name in before.record if before.record[name] != other.record[name]}
    assert differing - {"revision"} == {key}
    assert other.folder != before.folder
    monkeypatch.undo()
    write_labels(catalog, make_frames())
    write_cache(catalog, EXPERIMENT, make_frames())
    assert resolve(catalog).folder == before.folder


def test_another_seed_is_another_run_and_stands_in_its_name(catalog):
    names = [resolve(catalog, changed(EXPERIMENT, train={"seed": seed})).folder.name for seed in (0, 7)]
    assert [name.rsplit("-", 1)[0] for name in names] == ["small-t1_o2o_t2_o2m-seed0", "small-t1_o2o_t2_o2m-seed7"]
    assert names[0].rsplit("-", 1)[1] != names[1].rsplit("-", 1)[1]


def test_names_sources_and_tested_parts_of_an_experiment_do_not_name_another_run(catalog):
    alike = EXPERIMENT.model_copy(update={"name": "other", "source": "other.yaml", "parts": ("P2",)})
    assert resolve(catalog, alike).folder == resolve(catalog).folder


def test_a_refresh_that_changes_nothing_and_labels_written_again_keep_the_run(catalog):
    before = resolve(catalog)
    write_cache(catalog, EXPERIMENT, make_frames())
    write_labels(catalog, make_frames())
    assert resolve(catalog).folder == before.folder


def test_two_starts_are_two_runs_and_a_data_set_stands_for_its_run_of_the_same_experiment(catalog):
    sources = [resolve(catalog, changed(EXPERIMENT, train={"num_epochs": num})) for num in (1, 2)]
    for source in sources:
        write_record(source)
    started = [resolve(catalog, init_from=source.folder.name) for source in sources]
    assert len({run.folder for run in (resolve(catalog), *started)}) == 3
    assert [run.init_from for run in started] == [source.folder for source in sources]
    assert resolve(catalog, init_from=str(sources[0].folder)).folder == started[0].folder
    by_dataset = resolve(catalog, init_from="small")
    assert by_dataset.init_from == resolve(catalog).folder


def test_a_relabelled_data_set_does_not_reuse_the_scores_of_the_old_labels(catalog):
    run = resolve(catalog)
    finish_fold(run.fold_folder("P1"))
    assert resolve(catalog).is_fold_finished("P1")
    frames = make_frames()
    write_labels(catalog, frames.assign(au_01=1))
    relabelled = resolve(catalog)
    assert not relabelled.is_fold_finished("P1")
    assert relabelled.frames["au_01"].tolist() == [1] * 6
    write_labels(catalog, frames)
    assert resolve(catalog).is_fold_finished("P1")


# --- what cannot be run is one sentence


def test_what_a_run_needs_and_lacks_is_named(catalog):
    fp16 = changed(EXPERIMENT, cache={"features": {"weights": "tiny", "precision": "fp16"}})
    with pytest.raises(
        StoreError,
        match=r"small has no cache with the settings of small .*; to use a cache that exists, give "
        r"`--set cache\.features\.precision=fp32` or `--set cache\.features\.precision=bf16`; or run `fantrans refresh",
    ):
        resolve(catalog, fp16)
    many = changed(EXPERIMENT, cache={"views": {"num_views": 5}, "features": {"weights": "tiny"}})
    with pytest.raises(
        StoreError, match=r"has 3 views, small trains on 5; run .*, or give `--set cache.views.num_views=3`"
    ):
        resolve(catalog, many)
    with pytest.raises(UsageError, match="run or data set 'nowhere' does not exist"):
        resolve(catalog, init_from="nowhere")
    write_labels(catalog, make_frames().assign(part=["P1", "P2", "P1", "P2", "P3", "P3"]))
    with pytest.raises(DataError, match="subject F000 has frames in 2 parts"):
        resolve(catalog)
    (catalog.work_folder("small") / INDEX_NAME).unlink()
    with pytest.raises(DataError, match=r"frames.parquet does not exist, and heads learn from its labels; .*copy it"):
        resolve(catalog)  # a cache that was copied or imported without its index
    shutil.rmtree(catalog.caches_folder("small"))
    with pytest.raises(
        DataError, match=r"frames.parquet does not exist; run `fantrans refresh small --experiment small"
    ):
        resolve(catalog)


def test_an_experiment_that_the_cache_cannot_serve_is_refused(catalog):
    resnet = catalog.get_weights("tiny").model_copy(update={"family": "resnet18", "width": None})
    catalog = catalog.model_copy(update={"weights": {**catalog.weights, "tiny": resnet}})
    write_cache(catalog, EXPERIMENT, make_frames())
    with pytest.raises(ConfigError, match="small reads h1 and h2, and its cache holds only lf"):
        resolve(catalog)


def test_test_parts_are_the_ones_asked_for_or_the_experiments(catalog):
    run = resolve(catalog, EXPERIMENT.model_copy(update={"parts": ("P1", "P3")}))
    assert fold_parts(run, None) == ("P1", "P3")
    assert fold_parts(run, ["P2"]) == ("P2",)
    with pytest.raises(UsageError, match="part 'P4' does not exist; known ones: P1, P2, P3"):
        fold_parts(run, ["P1", "P4"])


# --- folders of runs


def finish_fold(fold, *, without=()):
    fold.mkdir(parents=True, exist_ok=True)
    for name in ("result.json", "predictions.parquet", "counts.parquet"):
        if name not in without:
            (fold / name).touch()


def test_a_fold_is_done_once_all_its_results_are_there(catalog):
    run = resolve(catalog)
    assert finished_folds(run.folder) == {}
    finish_fold(run.fold_folder("P1"))
    for part, lacking in (("P2", "result.json"), ("P3", "counts.parquet")):
        finish_fold(run.fold_folder(part), without=[lacking])
    assert finished_folds(run.folder) == {"P1": run.folder / "fold-P1"}
    assert [run.is_fold_finished(part) for part in ("P1", "P2", "P3")] == [True, False, False]
    assert not run.is_finished
    for part in ("P2", "P3"):
        finish_fold(run.fold_folder(part))
    assert run.is_finished
    assert list(finished_folds(run.folder)) == ["P1", "P2", "P3"]


def test_the_record_of_a_run_is_written_once_and_read_back(catalog):
    run = resolve(catalog)
    write_record(run)
    record = read_run(run.folder)
    assert (record["dataset"], record["experiment"], record["protocol"]) == ("small", "small", "rendered_bp4d")
    for name, value in run.record.items():
        assert record[name] == json.loads(json.dumps(value)), name
    path = run.folder / "run.json"
    path.write_text(json.dumps({**record, "experiment": "first"}))
    write_record(run)
    assert read_run(run.folder)["experiment"] == "first"
    assert run_folder(catalog, run.folder.name) == run_folder(catalog, str(run.folder)) == run.folder
    assert run_folder(catalog, "other") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"experiment": "small", "dataset": "small"}'])
def test_a_damaged_record_of_a_run_is_one_sentence(catalog, content):
    run = resolve(catalog)
    with pytest.raises(DataError, match=r"is not a run \(no run.json\); pass a folder printed by `fantrans train`"):
        read_run(run.folder)
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(content)
    sentence = r"run.json is damaged: expected JSON with experiment, dataset, cache, head, aus; delete it, and run"
    with pytest.raises(DataError, match=sentence):
        read_run(run.folder)


def test_a_run_is_found_by_folder_name_or_a_beginning_that_only_it_has(catalog):
    runs = catalog.roots.runs
    for name in ("a-seed0-11", "a-seed1-22", "a-seed1-22b"):
        (runs / name).mkdir(parents=True)
        (runs / name / "run.json").write_text("{}")
    assert catalog.run_names() == ["a-seed0-11", "a-seed1-22", "a-seed1-22b"]
    assert find_run(catalog, str(runs / "a-seed0-11")) == run_folder(catalog, "a-seed0") == runs / "a-seed0-11"
    assert find_run(catalog, "a-seed1-22") == runs / "a-seed1-22", "the whole name goes before the beginning"
    assert find_run(catalog, "11") == runs / "a-seed0-11", "the fingerprint is enough"
    assert run_folder(catalog, "b") is None
    assert run_folder(catalog, "") is None
    with pytest.raises(UsageError, match="2 runs begin with 'a-seed1', give more letters of one: a-seed1-22,"):
        run_folder(catalog, "a-seed1")
    with pytest.raises(UsageError, match=r"run 'a-sed0-11' does not exist below .*; near ones: a-seed0-11"):
        find_run(catalog, "a-sed0-11")
    with pytest.raises(UsageError, match="known ones: a-seed0-11, a-seed1-22, a-seed1-22b"):
        find_run(catalog, "zzz")


def test_runs_of_an_earlier_version_keep_their_names():
    assert "max_shift_cells" not in TrainConfig().document(), "a newer setting at its default"
    assert TrainConfig(max_shift_cells=2).document()["max_shift_cells"] == 2

"""The flows on a real Prefect server, over a small rendered data set."""

import inspect
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from prefect.client.orchestration import get_client

import fantrans as package
from pipeline.catalog import load_catalog
from pipeline.datasets.index import read_index
from pipeline.errors import ConfigError, StoreError
from pipeline.training.runs import prepare_run
from tests.command_line import fantrans
from tests.small_catalog import NUM_FRAMES, write_small_catalog

STAGES = ["render", "index", "detect", "crop", "extract"]


@pytest.fixture(scope="session")
def small_catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalog")
    return write_small_catalog(folder, dataset="small", small=2), folder / "small.yaml"


@pytest.fixture
def environment(small_catalog, monkeypatch):
    path, config = small_catalog
    monkeypatch.setenv("FANTRANS_CATALOG", str(path))
    return str(config)


@pytest.fixture
def refreshed(environment):
    from pipeline.refresh.stages import refresh_cache

    refresh_cache("small", experiment=environment)


def test_main_job_runs_from_raw_frames_to_a_report_and_a_second_run_computes_nothing(environment):
    from flows.main_job import main_job
    from flows.refresh import refresh_cache

    report = main_job("small", experiment=environment)
    assert report.parts == ("P1", "P2")
    assert report.table()["au"].tolist()[-1] == "mean"
    frames = read_index(load_catalog().work_folder("small"), dataset="small")
    assert len(frames) == NUM_FRAMES
    for name in ("report.json", "report.csv", "report.md"):
        assert (report.folder / name).is_file()

    runs = load_catalog().roots.runs
    assert f'href="{report.folder.name}/report.html"' in (runs / "index.html").read_text()
    assert len(list((runs / "caches").glob("small-*.html"))) == 1
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact for artifact in client.read_latest_artifacts()}
    f1, refresh = artifacts["f1-small-small"], artifacts["refresh-small"]
    rows = {row["au"]: row for row in json.loads(f1.data)}
    expected = report.table().set_index("au")
    for au in expected.index:
        for name in ("f1_percent", "low_percent", "high_percent"):
            assert rows[au][name] == pytest.approx(expected.loc[au, name], abs=1e-3)
    assert "95 %: bootstrap over subjects" in f1.description
    assert "The run had all subjects, tasks and coded frames of the data set." in f1.description
    assert f"| extract | 0 | {NUM_FRAMES} | 0 |" in refresh.data
    assert "file://" not in f1.description + refresh.data

    first = {path: path.stat().st_mtime_ns for path in report.folder.rglob("*") if path.suffix == ".safetensors"}
    assert len(first) == 4
    summaries = refresh_cache("small", experiment=environment)
    assert [summary.stage for summary in summaries] == STAGES
    assert [summary.num_computed for summary in summaries] == [0] * len(STAGES)
    assert [summary.num_kept for summary in summaries[:2]] == [len(frames)] * 2
    main_job("small", experiment=environment)
    more_views = Path(environment).with_name("more.yaml")
    more_views.write_text(f"base: {Path(environment).with_suffix('')}\ncache: {{views: {{num_views: 5}}}}\n")
    message = r"has 2 views, more trains on 5; run `fantrans refresh small --experiment .*/more.yaml`"
    with pytest.raises(StoreError, match=message):
        prepare_run(str(more_views), dataset="small")
    assert {path: path.stat().st_mtime_ns for path in first} == first


@pytest.mark.usefixtures("refreshed")
def test_init_from_a_data_set_starts_from_its_run_of_the_same_experiment(environment):
    from flows.train import train_folds

    (source,) = train_folds("small", environment)
    (started,) = train_folds("small", environment, init_from="small")
    assert json.loads((started / "run.json").read_bytes())["init_from"] == source.name
    assert started != source


@pytest.mark.usefixtures("refreshed")
def test_a_set_is_trained_in_one_pass_over_the_cache_and_reported_and_drawn(environment, tmp_path):
    from flows.train import train_folds
    from pipeline.report.compare import compare_runs
    from pipeline.report.figures import write_figures
    from pipeline.report.sets import write_set_report

    path = Path(environment).with_name("pair.yaml")
    path.write_text(
        "published_table: table1\nseeds: [0, 1]\nmembers:\n"
        "  baseline: {published: Baseline, head: {variant: baseline}}\n"
        "  shallow: {head: {num_blocks: 1}}\n"
    )
    folders = train_folds("small", str(path), base=environment)
    assert [folder.name.rsplit("-", 1)[0] for folder in folders] == [
        "small-baseline-seed0",
        "small-baseline-seed1",
        "small-t1_o2o_t2_o2m-seed0",
        "small-t1_o2o_t2_o2m-seed1",
    ]
    first = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*.safetensors")}
    assert len(first) == 4 * 2 * 2  # runs, folds, the trained head and the deployed one
    assert train_folds("small", str(path), base=environment) == folders
    assert {path: path.stat().st_mtime_ns for path in first} == first
    table, written = write_set_report(str(path), dataset="small", base=environment)
    assert [row.folders for row in table.rows] == [tuple(folders[:2]), tuple(folders[2:])]
    assert "| baseline | 2 |" in written.read_text()
    compared = compare_runs(f"{path}:shallow", f"{path}:baseline", dataset="small", base=environment)
    assert (compared.num_subjects, compared.num_runs) == (8, (2, 2))
    shallow, baseline = (folder / "figures" for folder in (folders[2], folders[0]))
    drawn = write_figures(load_catalog(), {"shallow": folders[2], "baseline": folders[0]}, together=tmp_path / "alike")
    assert {
        shallow / f"{name}.{kind}" for name in ("curves", "correlations", "gates", "masks") for kind in ("png", "svg")
    } <= set(drawn)
    assert tmp_path / "alike.svg" in drawn
    assert baseline / "gates.png" not in drawn
    assert all(path.stat().st_size > 1000 for path in drawn)


def test_tasks_never_use_prefects_cache():
    from prefect.cache_policies import NO_CACHE
    from prefect.tasks import Task

    from flows import maintenance, refresh, report, train

    tasks = [
        each
        for module in (maintenance, refresh, report, train)
        for each in vars(module).values()
        if isinstance(each, Task)
    ]
    assert {"run_stage", "train_heads", "aggregate", "verify_dataset"} <= {each.fn.__name__ for each in tasks}
    assert all(each.cache_policy == NO_CACHE for each in tasks)


@pytest.mark.usefixtures("refreshed")
def test_a_new_frame_is_computed_and_the_others_are_kept(environment, small_catalog, monkeypatch):
    from flows.refresh import refresh_cache
    from pipeline.refresh import stages

    content = yaml.safe_load(small_catalog[0].read_text())
    del content["datasets"]["small"]["rendered"]  # else the stage render would restore the changed frames
    grown = small_catalog[0].with_name("grown.yaml")
    grown.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("FANTRANS_CATALOG", str(grown))
    catalog = load_catalog()
    root = catalog.get_dataset("small").root
    codes = sorted((root / "AUCoding/AU_OCC").glob("*.csv"))[0]
    subject, task = codes.stem.split("_")
    image = sorted((root / "BP4D-training" / subject / task).glob("*.jpg"))[0]
    frame = int(image.stem) + 1
    shutil.copy(image, image.with_name(f"{frame:0{len(image.stem)}d}.jpg"))
    table = pd.read_csv(codes)
    row = table.iloc[[0]].copy()
    row.iloc[0, 0] = frame
    pd.concat([table, row]).to_csv(codes, index=False)

    index, detect, crop, extract = refresh_cache("small", experiment=environment)
    assert (index.num_kept, index.num_computed) == (NUM_FRAMES, 1)
    assert (detect.num_kept, detect.num_computed) == (NUM_FRAMES, 1)
    assert crop.num_computed == 1
    assert extract.num_computed == 1

    shutil.copy(sorted((root / "BP4D-training").rglob("*.jpg"))[-1], image)
    _, detect, crop, _ = refresh_cache("small", experiment=environment)
    assert (detect.num_computed, crop.num_computed) == (1, 1), "another image under the same name"

    image.write_bytes(image.read_bytes()[:200])
    for num_dropped in (1, 0):
        _, detect, crop, extract = stages.refresh_cache("small", experiment=environment)
        assert detect.num_computed == 1, "an unreadable frame is tried each time"
        assert (extract.num_computed, extract.num_dropped) == (0, num_dropped)


@pytest.mark.usefixtures("refreshed")
def test_a_head_that_is_not_trained_yet_is_scored_by_its_deployed_branch(environment):
    cache = package.open_cache("small", environment)
    head = package.new_head(cache, num_blocks=1)
    scored = package.score(head, cache, "P1", device="cpu")
    assert scored["num_known"].sum() > 0
    pd.testing.assert_frame_equal(scored, package.score(head.deployed(), cache, "P1", device="cpu"))


@pytest.mark.usefixtures("refreshed")
def test_a_member_with_its_own_cache_trains_on_it_and_an_error_names_the_command_that_creates_it(environment):
    from pipeline.refresh.caches import list_caches, refresh_command
    from pipeline.refresh.stages import refresh_cache
    from pipeline.report.compare import compare_runs
    from pipeline.training.trainer import train_folds

    path = Path(environment).with_name("own.yaml")
    path.write_text(
        "members:\n  plain: {head: {variant: baseline}}\n"
        "  r18: {head: {variant: baseline, input_features: lf_only},\n"
        "        cache: {features: {weights: resnet18-rendered}}}\n"
    )
    message = rf"run `fantrans refresh small --experiment {path}:r18 --base {environment}`"
    with pytest.raises(StoreError, match=message):
        train_folds(str(path), dataset="small", base=environment)
    with pytest.raises(ConfigError, match="trains on several caches"):
        refresh_cache("small", experiment=str(path), base=environment)
    refresh_cache("small", experiment=f"{path}:r18", base=environment)
    commands = {cache.weights: cache.refresh_command for cache in list_caches(load_catalog(), "small")}
    assert commands["resnet18"] == "fantrans refresh small --set cache.features.weights=resnet18-rendered"
    plain, r18 = train_folds(str(path), dataset="small", base=environment)
    caches = [json.loads((folder / "run.json").read_bytes())["cache"] for folder in (plain, r18)]
    assert caches[0] != caches[1]
    catalog = load_catalog()
    of_three_views = catalog.datasets["small"].model_copy(update={"experiment": "demo_quick"})
    there = catalog.model_copy(update={"datasets": {"small": of_three_views}})
    assert refresh_command(there, "small", caches[0]) == "fantrans refresh small --views 2"
    assert compare_runs(plain.name, r18.name).num_subjects == 8


@pytest.mark.usefixtures("environment")
def test_commands_give_a_flow_and_the_function_without_prefect_what_they_take(monkeypatch):
    import flows.refresh
    import flows.train
    from flows.commands import data, train
    from pipeline.refresh import stages
    from pipeline.refresh.job import prepare_refresh
    from pipeline.training import trainer

    taken = []

    def recorder(function):
        signature = inspect.signature(function)
        return lambda *words, **named: taken.append(signature.bind(*words, **named).arguments) or ["a", "b"]

    for module, name in ((flows.refresh, "refresh_cache"), (flows.train, "train_folds")):
        monkeypatch.setattr(module, name, recorder(getattr(module, name).fn))
    monkeypatch.setattr(stages, "refresh_cache", recorder(prepare_refresh))
    monkeypatch.setattr(trainer, "train_folds", recorder(trainer.train_folds))
    for is_named in (True, False):
        for module in (data, train):
            monkeypatch.setattr(module, "is_server_named", lambda is_named=is_named: is_named)
        assert fantrans("refresh", "small", "--device", "cpu").status == 0
        assert fantrans("train", "small", "--parts", "P1", "--device", "cpu").status == 0
    assert {(each["dataset"], each["device"]) for each in taken} == {("small", "cpu")}
    assert [each.get("parts") for each in taken] == [None, ["P1"], None, ["P1"]]

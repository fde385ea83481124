"""Every command with --json prints one document, with the keys and types that docs/cli.md lists."""

import json
import re
import shutil
from datetime import UTC, datetime

import pytest
from typer.main import get_command

from flows.cli import app
from flows.status import Deployment, Status, Worker
from pipeline.catalog import CATALOG_FILE, load_catalog
from pipeline.refresh.caches import list_caches
from pipeline.store.lock import writer_lock
from tests.command_line import commands, fantrans
from tests.small_catalog import write_small_catalog

HEADING = re.compile(r"### `(?P<command>fantrans .+?)`.*: `(?P<schema>fantrans/[\w-]+/1)`")
ROW = re.compile(r"\| `(?P<key>[\w.\[\]]+)` \| (?P<types>[a-z ]+) \|")
TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}


def schemas():
    """Types by key, by schema, as the page lists them; and the command of each schema."""
    found, commands = {}, {}
    for line in (CATALOG_FILE.parent / "docs/cli.md").read_text().splitlines():
        if heading := HEADING.match(line):
            schema = heading["schema"]
            found[schema], commands[schema] = {"schema": ["string"]}, heading["command"]
        elif found and (row := ROW.match(line)):
            found[schema][row["key"]] = row["types"].split(" or ")
    return found, commands


SCHEMAS, COMMANDS = schemas()


def check(value, types, path=""):
    """Compare a document with the page, in both directions."""
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        keys = {re.split(r"[.\[]", key.removeprefix(prefix))[0] for key in types if key.startswith(prefix)}
        assert set(value) == keys, path
        for key, item in value.items():
            check(item, types, prefix + key)
    elif isinstance(value, list):
        for item in value:
            check(item, types, f"{path}[]")
    else:
        assert path in types, path
        assert any(
            isinstance(value, TYPES[name]) and isinstance(value, bool) <= (name == "boolean") for name in types[path]
        ), f"{path}: {value!r} is not {types[path]}"


def document(*arguments, status=0):
    ended = fantrans(*arguments)
    assert ended.status == status, ended.err
    content = json.loads(ended.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    check(content, SCHEMAS[content["schema"]])
    return content


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The variables of a catalog whose data set `small` has a cache and the runs of a set."""
    folder = tmp_path_factory.mktemp("world")
    pair = folder / "pair.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        patch.setenv("FANTRANS_CATALOG", str(write_small_catalog(folder, dataset="small", num_tasks=4, small=2)))
        pair.write_text(
            "published_table: table1\nmembers:\n  baseline: {published: Baseline, head: {variant: baseline}}\n"
            "  shallow: {head: {num_blocks: 1}}\n"
        )
        plan = document("refresh", "small", "--dry-run", "--json")
        assert (plan["has_all_stages"], plan["stages"][-1]["stage"]) == (False, "render")
        assert fantrans("-q", "refresh", "small").status == 0
        trained = fantrans("train", "small", "-e", pair)
        assert trained.status == 0, trained.err
        yield folder, pair


def test_what_lists_and_checks(world):
    catalog = document("catalog", "ls", "--json")
    assert [each["name"] for each in catalog["datasets"]] == ["small", "undisturbed"]
    assert document("catalog", "check", "--json")["faults"] == []
    weights = document("weights", "ls", "--json")["weights"]
    assert all(each["is_intact"] for each in weights)
    (cache,) = document("cache", "ls", "--json")["caches"]
    assert (cache["dataset"], cache["state"], cache["num_runs"]) == ("small", "intact", 2)
    assert cache["refresh_command"] == "fantrans refresh small"
    assert document("refresh", "small", "--dry-run", "--json")["has_all_stages"]
    stats = document("cache", "stats", "small", "--frames", 8, "--json")
    assert len(stats["tables"]) == 3
    verified = document("cache", "verify", "small", "--json")
    assert (verified["is_intact"], verified["has_cache"], len(verified["stores"])) == (True, True, 2)
    verified = document("cache", "verify", "undisturbed", "--json", status=1)
    assert (verified["is_intact"], verified["has_cache"], verified["stores"]) == (True, False, [])
    gone = fantrans("cache", "verify", "undisturbed")
    assert gone.status == 1
    assert "undisturbed should have one: check the disk and FANTRANS_CACHE, or run `fantrans refresh undi" in gone.out
    assert document("cache", "prune", "small", "--json")["stores"][0]["freed_bytes"] == 0


def test_damage_is_listed_with_status_1_and_then_known_to_cache_ls(world):
    folder, _ = world
    shard = next(folder.glob("cache/small/*/arrays.zarr/*/*/c.*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    verified = document("cache", "verify", "small", "--json", status=1)
    assert [store["num_damaged"] for store in verified["stores"]] == [0, 1]
    assert verified["stores"][1]["damages"][0]["frame_ids"]
    assert [store["refresh_command"] for store in verified["stores"]] == [None, "fantrans refresh small"]
    assert "to repair it: fantrans refresh small\n" in fantrans("cache", "verify", "small").out
    assert "damaged 1" in fantrans("cache", "ls").out
    (cache,) = document("cache", "ls", "--json")["caches"]
    assert (cache["state"], cache["num_damaged"]) == ("damaged", 1)
    shard.write_bytes(data)
    (folder / "cache/small" / cache["fingerprint"] / "damage.json").unlink()


def test_a_cache_counts_the_runs_of_its_own_data_set_and_an_unfinished_one_is_listed(world):
    folder, _ = world
    (known,) = list_caches(load_catalog(), "small")
    other = folder / "runs/undisturbed-a"
    other.mkdir()
    (other / "run.json").write_text(json.dumps({"dataset": "undisturbed", "cache": known.fingerprint}))
    begun = folder / "cache/undisturbed" / known.fingerprint
    begun.mkdir(parents=True)
    shutil.copy(known.folder / "fingerprint.json", begun)
    caches = {cache["dataset"]: cache for cache in document("cache", "ls", "--json")["caches"]}
    assert (caches["small"]["num_runs"], caches["undisturbed"]["num_runs"]) == (2, 1)
    assert (caches["undisturbed"]["state"], caches["undisturbed"]["revision"]) == ("unfinished", None)
    assert "unfinished" in fantrans("cache", "ls", "undisturbed").out
    name = known.fingerprint[:6]
    assert "pass --yes" in document("cache", "rm", "undisturbed", name, "--json", status=2)["error"]["message"]
    refused = document("cache", "rm", "undisturbed", name, "--yes", "--json", status=1)["error"]["message"]
    assert "is the cache of undisturbed-a" in refused
    shutil.rmtree(other)
    with writer_lock(begun):
        refused = document("cache", "rm", "undisturbed", name, "--yes", "--json", status=1)["error"]["message"]
        assert "is being written by process" in refused
    removed = document("cache", "rm", "undisturbed", name, "--yes", "--json")
    assert (removed["num_files"], removed["used_by_runs"]) == (2, [])
    assert list(begun.parent.iterdir()) == []


def test_faults_of_the_catalog_are_listed_with_status_1(world, monkeypatch, tmp_path):
    monkeypatch.setenv("FANTRANS_CATALOG", str(CATALOG_FILE))
    monkeypatch.setenv("BP4D_ROOT", str(tmp_path))
    faults = document("catalog", "check", "bp4d", "--json", status=1)["faults"]
    assert "BP4D-training does not exist" in faults[0]


def test_reports_and_comparisons(world):
    _, pair = world
    by_set = document("report", "small", "-e", pair, "--json")
    (table,) = by_set["sets"]
    assert [row["member"] for row in table["rows"]] == ["baseline", "shallow"]
    runs = [row["runs"][0] for row in table["rows"]]
    reported = document("report", *runs, "--json")
    assert [run["run"] for run in reported["runs"]] == runs
    compared = document("compare", *runs, "--json")
    assert compared == document("compare", *runs, "--json")
    assert len(compared["action_units"]) == 12
    members = document("compare", "small", f"{pair}:shallow", f"{pair}:baseline", "--json")
    assert members["mean"]["points"] == pytest.approx(-compared["mean"]["points"])


def test_runs_are_listed_shown_and_compared(world):
    folder, _ = world
    runs = document("runs", "ls", "small", "--sort", "run", "--json")["runs"]
    assert [run["state"] for run in runs] == ["finished", "finished"]
    names = [run["run"] for run in runs]
    shown = document("runs", "show", names[0], "--json")
    assert {fold["state"] for fold in shown["folds"]} == {"finished"}
    assert shown["report"]["run"] == names[0]
    compared = document("runs", "compare", *names, "--json")
    assert "head.variant" in [setting["name"] for setting in compared["settings"]]
    assert [run["over_first"] is None for run in compared["runs"]] == [True, False]
    (folder / "runs/a-started").mkdir()
    (folder / "runs/a-started/run.json").write_text(
        json.dumps({"experiment": "a", "dataset": "small", "cache": "0", "head": {}, "aus": [1]})
    )
    assert document("runs", "show", "a-started", "--json")["report"] is None
    assert "a-started" in [run["run"] for run in document("runs", "ls", "--json")["runs"]]
    shutil.rmtree(folder / "runs/a-started")


def test_a_score_is_printed_with_its_settings(world):
    scores = document("weights", "evaluate", "retinaface-mobilenet", "--num", 2, "--json", "--device", "cpu")
    assert (scores["num"], scores["device"]) == (2, "cpu")


def test_a_server_is_described(world, monkeypatch):
    caches = list_caches(load_catalog(), "small")
    status = Status(
        [Worker("gpu", None, "no pool; run `fantrans ops deploy`", None)],
        [
            Deployment("train-folds/bp4d", None, None, None),
            Deployment(
                "report/bp4d", None, None, datetime(2026, 1, 5, 7, tzinfo=UTC), None, "0 7 * * 1 UTC, off", "cpu"
            ),
        ],
        caches,
        ["x: is damaged"],
        ["report/bp4d failed: because"],
        ["the schedules of 1 deployment are off"],
    )
    monkeypatch.setattr("flows.status.read_status", lambda: status)
    assert document("ops", "status", "--json")["deployments"][0]["last_run_at"] is None
    shown = fantrans("ops", "status").out
    assert "not scheduled" in shown
    assert "never" in shown
    assert "0 7 * * 1 UTC, off" in shown
    assert "late: 2026-01-05" in shown
    assert "\nreport/bp4d failed: because\nthe schedules of 1 deployment are off\n" in shown
    assert f"caches are those of this shell, below {load_catalog().roots.cache}\n" in shown
    assert document("ops", "status", "--json")["problems"] == ["report/bp4d failed: because"]
    assert document("ops", "status", "--json")["hints"] == ["the schedules of 1 deployment are off"]
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr("flows.connection.wait_for_server", lambda address, seconds: None)
    monkeypatch.setattr("flows.bootstrap.bootstrap", lambda **limits: [("pool gpu", "unchanged")])
    assert document("ops", "deploy", "--json")["items"] == [{"name": "pool gpu", "result": "unchanged"}]


@pytest.mark.parametrize(
    ("arguments", "kind", "status"),
    [
        (("cache", "ls", "bp5d", "--json"), "CatalogError", 2),
        (("cache", "ls", "--json", "--deep"), "NoSuchOption", 2),
        (("refresh", "small", "--json"), "ConfigError", 2),
        (("cache", "stats", "undisturbed", "--json"), "StoreNotFoundError", 1),
    ],
)
def test_an_error_is_a_document_too_and_a_sentence_on_stderr(world, arguments, kind, status):
    error = document(*arguments, status=status)["error"]
    assert (error["type"], error["exit_status"]) == (kind, status)
    assert f"error: {error['message']}" in fantrans(*arguments).err


def test_the_page_has_a_schema_for_each_command_that_prints_one():
    found = {
        f"fantrans {' '.join(words)}"
        for words, command in commands(get_command(app))
        if any("--json" in param.opts for param in command.params)
    }
    listed = {command.removesuffix(" --dry-run") for command in COMMANDS.values()}
    assert found == listed - {"fantrans ... --json"}

"""The version of the package and the schema in every file of a run; later schemas are refused."""

import json
from importlib.metadata import version

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from pipeline.errors import DataError
from pipeline.report.run import read_report
from pipeline.training.export import DESCRIPTION_VERSION, load_deployed
from pipeline.training.run_files import SCHEMA
from tests.unit import small_runs

OURS = version("fantrans")


@pytest.fixture(scope="module")
def fold(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    small_runs.make_cache(folder)
    return small_runs.train_fold(small_runs.make_run(folder), "P1")


def rewritten(path, **changes):
    """Change keys of a JSON file; returns its bytes from before."""
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | changes))
    return before


def test_each_json_file_has_its_schema_and_the_version(fold):
    for path in (fold.parent / "run.json", fold / "result.json"):
        record = json.loads(path.read_bytes())
        assert (record["schema"], record["versions"]["fantrans"]) == (SCHEMA, OURS)
        assert record["versions"].keys() == {"fantrans", "python", "torch"}
    head = json.loads((fold / "deployed/head.json").read_bytes())
    assert (head["version"], head["fantrans"]) == (DESCRIPTION_VERSION, OURS)


@pytest.mark.parametrize(
    ("name", "schema"), [("head.safetensors", SCHEMA), ("deployed/head.safetensors", DESCRIPTION_VERSION)]
)
def test_the_metadata_of_weights_have_both(fold, name, schema):
    with safe_open(fold / name, framework="pt") as file:
        metadata = file.metadata()
    assert {key: json.loads(text) for key, text in metadata.items()} == {
        "fantrans": {"version": OURS, "schema": schema}
    }


@pytest.mark.parametrize("name", ["predictions.parquet", "counts.parquet"])
def test_the_metadata_of_tables_have_both(fold, name):
    metadata = pq.read_schema(fold / name).metadata
    assert json.loads(metadata[b"fantrans"]) == {"version": OURS, "schema": SCHEMA}


@pytest.mark.parametrize(
    ("versions", "writer"), [({"fantrans": "9.1.0"}, "the version 9.1.0 that wrote it"), ({}, "the version that wrote")]
)
def test_a_run_of_a_later_schema_is_refused_with_one_sentence(fold, versions, writer):
    record = fold.parent / "run.json"
    before = rewritten(record, schema=SCHEMA + 1, versions=versions)
    try:
        with pytest.raises(DataError, match=rf"schema {SCHEMA + 1}, this version reads schema {SCHEMA}; use {writer}"):
            read_report(fold.parent)
    finally:
        record.write_bytes(before)


def test_a_head_of_a_later_version_is_refused_with_one_sentence(fold):
    description = fold / "deployed/head.json"
    before = rewritten(description, version=DESCRIPTION_VERSION + 1, fantrans="9.1.0")
    try:
        with pytest.raises(DataError, match=r"head.json is written in schema 3, .*; use the version 9.1.0 that wrote"):
            load_deployed(description.parent)
    finally:
        description.write_bytes(before)

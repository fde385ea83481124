"""What an examination finds in a data set of noise, whose labels are known."""

import json

import pytest

from pipeline.refresh import doctor
from pipeline.refresh.doctor import examine
from pipeline.refresh.estimate import frame_bytes, view_bytes
from pipeline.refresh.job import prepare_refresh
from tests.bad_inputs import CODES, IMAGE, write_project
from tests.command_line import fantrans


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name in ("CATALOG", "WORK", "CACHE", "RUNS", "WEIGHTS"):
        monkeypatch.delenv(f"FANTRANS_{name}", raising=False)
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examined(dataset="bp4d", *, is_deep=False):
    return examine(prepare_refresh(dataset, checks_weights=False), is_deep=is_deep)


def test_counts_rates_and_weights_are_those_of_the_labels(project):
    found = examined()
    assert found.is_ready
    assert found.coverage == "3 of 41 subjects, 3 of 328 tasks"
    parts = found.parts.set_index("part")
    assert parts.loc["P1"].tolist() == [1, 6, 0]
    assert parts.loc["all"].tolist() == [3, 18, 0]
    aus = found.aus.set_index("au")
    assert aus["percent_all"].tolist() == [50] * 12, "each action unit is present in every other frame"
    assert aus["num_positive_P2"].tolist() == [3] * 12
    assert aus["weight_test_P3"].tolist() == pytest.approx([1] * 12)
    assert aus.loc[12, "percent_published"] == 56.2
    assert any("AU1, AU2" in note and "AU12" in note for note in found.notes)


def test_an_unreadable_image_beyond_the_sample_is_found_by_a_deep_examination_only(project, monkeypatch):
    monkeypatch.setattr(doctor, "NUM_SAMPLED", 3)
    (project / IMAGE).with_name("6.jpg").write_bytes(b"no image")
    assert examined().num_decoded == 3
    assert not any("cannot be read" in note for note in examined().notes)
    deep = examined(is_deep=True)
    assert deep.num_decoded == 18
    (note,) = [each for each in deep.notes if each.startswith("1 of 18 decoded frames cannot be read")]
    assert ": F001/T1/6; the first: " in note
    assert "6.jpg is not an image that can be decoded" in note
    assert deep.is_ready
    (project / IMAGE).with_name("5.jpg").write_bytes(b"no image")
    (fault,) = examined(is_deep=True).faults
    assert fault.startswith("2 of 18 decoded frames cannot be read"), "more than a tenth"


def test_a_fold_without_positive_labels_is_named(project):
    for subject in ("F001", "F004"):
        path = project / CODES.replace("F001", subject)
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *(row.rpartition(",")[0] + ",0" for row in rows)]) + "\n")
    found = examined()
    assert any("the fold that tests P2 cannot be trained" in note and "AU24" in note for note in found.notes)
    assert found.aus.set_index("au")["weight_test_P2"].isna().all()
    assert found.aus.set_index("au")["weight_test_P1"].notna().all()


def test_the_disk_is_estimated_by_profile(project):
    job = prepare_refresh("bp4d", checks_weights=False)
    maps = 3 * 64 * 64 * 64 * 2  # LF, H1 and H2 of a FAN of width 64 in fp16
    assert view_bytes(job) == round(0.211 * maps)
    assert frame_bytes(job) == 448 * 448 * 3 + 6 * 8 + job.config.views.num_views * view_bytes(job)
    assert examined().needed_bytes == 18 * frame_bytes(job)


def test_too_small_a_disk_is_a_note(project, monkeypatch):
    monkeypatch.setattr(doctor, "free_bytes", lambda root: 1000)
    assert any("GB are free" in note for note in examined().notes)


def test_the_command_prints_what_is_not_ready_and_its_document(project):
    (project / CODES).unlink()
    ended = fantrans("catalog", "check", "bp4d")
    assert ended.status == 1
    assert ended.out.splitlines()[-1] == "bp4d is not ready: 1 fault"
    record = json.loads(fantrans("catalog", "check", "bp4d", "--json").out)
    assert (record["schema"], record["is_ready"], record["aus"]) == ("fantrans/catalog-examination/1", False, [])
    assert record["faults"] == ["part P1 has no frames; a fold needs subjects in each of P1, P2, P3"]

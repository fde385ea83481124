"""Each of many bad inputs ends with its exit status and a sentence that names it, never with a traceback."""

import shutil

import pytest

from tests.bad_inputs import FAULTS, write_project
from tests.command_line import fantrans


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project") / "project"
    folder.mkdir()
    write_project(folder)
    return folder


@pytest.fixture
def copy(project, tmp_path, monkeypatch):
    """A project to damage: the working folder."""
    for name in ("CATALOG", "WORK", "CACHE", "RUNS", "WEIGHTS", "LOCKS", "TRACKING"):
        monkeypatch.delenv(f"FANTRANS_{name}", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.mark.parametrize("name", ["bp4d", "disfa", "own"])
def test_the_project_itself_is_ready(copy, name):
    ended = fantrans("catalog", "check", name, "--deep")
    assert ended.status == 0, ended
    assert ended.out.splitlines()[-1] == f"{name} is ready; run `fantrans refresh {name} --dry-run`"
    assert "cannot be read" not in ended.out


def test_there_are_a_hundred_faults_of_different_names():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 100


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_bad_input_is_one_sentence_with_its_exit_status(copy, fault):
    fault.change(copy)
    ended = fantrans(*fault.command.split(" "))
    assert ended.status == fault.status, ended
    lines = [line for line in (ended.out + ended.err).splitlines() if line.startswith(("error:", "fault:", "note:"))]
    assert any(fault.words in line for line in lines), ended
    assert sum(line.startswith("error:") for line in lines) <= 1
    assert "Traceback" not in ended.err

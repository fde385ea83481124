import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.report.listing import list_runs
from pipeline.training import removal
from pipeline.training.removal import remove_runs
from pipeline.training.run_lock import is_in_training, removal_lock, training_locks
from tests.processes import make_process


def make_folder(root, name, **record):
    folder = root / name
    (folder / "fold-P1").mkdir(parents=True)
    content = {"experiment": "e", "dataset": "d", "cache": "c", "head": {}, "aus": [], **record}
    (folder / "run.json").write_text(json.dumps(content))
    (folder / "fold-P1/head.safetensors").write_bytes(bytes(100))
    return folder


def test_a_removed_run_leaves_nothing_and_others_stay(tmp_path):
    a, b = make_folder(tmp_path, "a"), make_folder(tmp_path, "b")
    remove_runs([a])
    assert [*tmp_path.iterdir()] == [b]


def test_a_run_that_initialises_another_is_kept_unless_both_go_or_it_is_forced(tmp_path):
    a = make_folder(tmp_path, "a")
    b = make_folder(tmp_path, "b", init_from="a")
    make_folder(tmp_path, "c", init_from=None)
    (tmp_path / "c/run.json").write_text("{")
    with pytest.raises(DataError, match="a initialises b; remove them too, or pass --force"):
        remove_runs([tmp_path / "c", a])
    assert (tmp_path / "c").exists(), "nothing is removed if one of the runs cannot be"
    remove_runs([a, b])
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    a, b = make_folder(tmp_path, "a"), make_folder(tmp_path, "b", init_from="a")
    remove_runs([a], is_forced=True)
    assert b.exists()
    assert not a.exists()


def test_a_run_in_training_is_kept_unless_it_is_forced(tmp_path):
    a = make_folder(tmp_path, "a")
    with training_locks([a, a]):
        assert is_in_training(a)
        with pytest.raises(DataError, match="a is being trained; wait until the training ends"):
            remove_runs([a])
        assert a.exists()
        remove_runs([a], is_forced=True)
    assert not a.exists()


def test_a_training_that_starts_during_a_removal_gets_a_lock_that_counts(tmp_path):
    a = make_folder(tmp_path, "a")
    with removal_lock(a):
        process = make_process(target=hold_and_touch, args=(str(a),))
        process.start()
        while not (tmp_path / "started").exists() and process.is_alive():
            pass
        shutil.move(a, tmp_path / "gone")
    process.join()
    assert process.exitcode == 0
    assert (a / "held").exists()


def hold_and_touch(folder):
    (Path(folder).parent / "started").touch()
    with training_locks([Path(folder)]):
        assert is_in_training(Path(folder))
        (Path(folder) / "held").touch()


def remove_and_die(folder):
    removal._discard = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    remove_runs([Path(folder)])


def test_a_killed_removal_leaves_no_run_and_the_next_one_frees_the_space(tmp_path):
    a, b = make_folder(tmp_path, "a"), make_folder(tmp_path, "b")
    process = make_process(target=remove_and_die, args=(str(a),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list_runs(tmp_path)["run"].tolist() == ["b"]
    assert len([*tmp_path.iterdir()]) == 2
    remove_runs([b])
    assert [*tmp_path.iterdir()] == []

import errno
import logging
from dataclasses import replace

import pandas as pd
import pytest

from pipeline.errors import WriteError
from pipeline.report import run as reports
from pipeline.report.run import read_report, write_files, written_unless_read_only
from pipeline.training.trainer import train_heads
from tests.unit import small_cache, small_runs
from tests.unit.small_runs import make_run


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    small_runs.make_cache(folder)
    run = make_run(folder)
    train_heads([(run, "P1"), (run, "P3")])
    return read_report(run.folder)


def test_the_legend_explains_the_columns_that_are_shown_and_no_others(report):
    table = report.rich_table()
    shown = {str(column.header) for column in table.columns}
    assert {"P1", "P3", "always", "positive"} <= shown
    assert not {"P2", "pooled", "of"} & shown
    legend = str(table.caption)
    assert legend.startswith("P1, P3: F1 on that part")
    assert "Always: " in legend
    assert "Positive: " in legend
    assert "Pooled" not in legend
    assert "Of: " not in legend
    assert "| pooled |" in report.markdown()
    assert "Pooled: F1 of summed counts. Always:" in report.markdown()
    assert "Of: known labels." in report.markdown()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_report_needs_no_writable_folder(report, monkeypatch, caplog, code):
    def refuse(path, *_):
        raise WriteError(f"{path} cannot be written", code)

    monkeypatch.setattr(reports, "write_json", refuse)
    assert written_unless_read_only(lambda: write_files(report)) is None
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.messages[0] == (
        f"the files of the report are not written: {report.folder / 'report.json'} cannot be written"
    )
    monkeypatch.undo()
    assert written_unless_read_only(lambda: write_files(report)) == report.folder / "report.md"


def test_a_full_disk_is_an_error_of_the_report(report, monkeypatch):
    def refuse(path, *_):
        raise WriteError(f"{path} cannot be written", errno.ENOSPC)

    monkeypatch.setattr(reports, "write_json", refuse)
    with pytest.raises(WriteError):
        written_unless_read_only(lambda: write_files(report))


def test_what_a_run_lacks_of_its_data_set_stands_in_every_report(tmp_path):
    small_runs.make_cache(tmp_path)
    frames = small_cache.make_frames()
    expected = dict.fromkeys([*frames["subject"].unique(), "absent"], "P1")
    lost = frames.iloc[:1].assign(frame_id="lost")
    run = make_run(tmp_path, rules=replace(small_runs.RULES, subject_parts=expected), frames=pd.concat([frames, lost]))
    train_heads([(run, "P1")])
    report = read_report(run.folder)
    counts = f"{len(expected) - 1} of {len(expected)} subjects"
    assert report.gaps is not None
    assert report.gaps.startswith(counts)
    num_features = len(run.cache.index)
    assert report.gaps.endswith(f" tasks, {num_features} of {len(frames) + 1} coded frames")
    assert report.as_json()["gaps"] == report.gaps
    for page in (report.markdown(), str(report.rich_table().caption)):
        assert f" Data: {report.gaps}." in page


def test_a_run_that_had_all_of_its_data_says_nothing_of_it(report):
    assert report.as_json()["gaps"] is None
    assert "Data:" not in report.markdown()

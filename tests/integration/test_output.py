import pytest
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from flows.commands.output import make_console, print_table


def make_table(**settings):
    table = Table(box=SIMPLE, **settings)
    table.add_column("run")
    table.add_column("F1", justify="right", no_wrap=True)
    table.add_column("95 %", justify="right", no_wrap=True)
    table.add_row("bp4d-t1_o2o_t2_o2m-seed0", "64.81", "63.75-66.02")
    return table


@pytest.mark.parametrize("settings", [{}, {"padding": (0, 1, 0, 0), "pad_edge": False}])
def test_a_narrow_terminal_cuts_no_number_and_folds_names(monkeypatch, capsys, settings):
    monkeypatch.setenv("COLUMNS", "20")
    print_table(make_table(**settings))
    out = capsys.readouterr().out
    assert "64.81" in out
    assert "63.75-66.02" in out
    assert max(map(len, out.splitlines())) < 45
    column = "".join(line.split()[0] for line in out.splitlines()[3:] if line.split())
    assert column == "bp4d-t1_o2o_t2_o2m-seed0"


def test_a_wide_terminal_folds_nothing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    print_table(make_table())
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "bp4d-t1_o2o_t2_o2m-seed0" in line]) == 1
    assert max(map(len, lines)) <= 60


def test_no_color_means_no_codes_at_all(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def printed(console: Console) -> str:
        with console.capture() as captured:
            console.print("[bold red]error:[/] x")
        return captured.get()

    assert "\x1b[" in printed(make_console(force_terminal=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(make_console(force_terminal=True)) == "error: x\n"

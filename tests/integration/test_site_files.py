"""The files of `ops/` and the commands of docs/operations.md, as far as they can be checked without a server."""

import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from prefect import Flow

from flows.bootstrap import TIMEZONE, _timezone, deployment_key
from pipeline.catalog import CATALOG_FILE
from pipeline.errors import UsageError

ROOT = CATALOG_FILE.parent
SITE = ROOT / "ops"

RUN_BY = {
    "fantrans ops up": ("tests/e2e/conftest.py", '"ops", "up"'),
    "fantrans ops status": ("tests/e2e/test_operations.py", '"ops", "status"'),
    "fantrans ops deploy --gpus 2": ("tests/e2e/test_operations.py", '"ops", "deploy", "--gpus", "2"'),
    "prefect --no-prompt deployment run 'refresh-cache/bp4d-synthetic' --watch": (
        "tests/e2e/conftest.py",
        '"--no-prompt", "deployment", "run", deployment, "--watch"',
    ),
    "prefect --no-prompt deployment run 'refresh-cache/bp4d-synthetic' --watch -p 'cluster={\"num_workers\": 4}'": (
        "tests/e2e/conftest.py",
        'cluster={"num_workers": 4}',
    ),
    "prefect --no-prompt deployment run 'train-folds/bp4d-synthetic' --watch": (
        "tests/e2e/test_operations.py",
        '"train-folds"',
    ),
    "prefect --no-prompt deployment run 'report/bp4d-synthetic' --watch": ("tests/e2e/test_operations.py", '"report"'),
    "fantrans refresh bp4d --dry-run --experiment fan_trans": ("tests/integration/test_faults.py", '"--dry-run"'),
    "fantrans refresh bp4d --workers 4": ("tests/integration/test_faults.py", '"--workers", "4"'),
    "fantrans cache verify bp4d --deep": ("tests/integration/test_faults.py", '"verify", "faces", "--deep"'),
    "fantrans cache prune bp4d": ("tests/integration/test_faults.py", '"prune", "faces"'),
}
"""Commands of the operations page; the test that runs each, on its own data set and paths, and its words there."""


def settings():
    lines = (SITE / "fantrans.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_command_of_the_operations_page_is_run_by_a_test_or_marked():
    page = re.sub(r"^```yaml$.*?^```$", "", (ROOT / "docs/operations.md").read_text(), flags=re.M | re.S)
    commands = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    assert len(commands) > 10
    named = [re.split(r"\s+# ", command)[0] for command in commands if "# not run by a test" not in command]
    assert [command for command in named if command not in RUN_BY] == []
    assert [words for file, words in RUN_BY.values() if words not in (ROOT / file).read_text()] == []


def test_paths_in_the_settings_are_those_that_the_catalog_reads():
    known = set(re.findall(r"\$\{oc\.env:(\w+)", CATALOG_FILE.read_text()))
    known |= {"FANTRANS_WEBHOOK", "FANTRANS_GPUS", "NUMBA_CACHE_DIR", "NO_PROXY", TIMEZONE}
    ours = {name for name in settings() if not name.startswith(("PREFECT_", "DO_NOT_TRACK"))}
    assert ours <= known
    assert {"FANTRANS_WORK", "FANTRANS_CACHE", "FANTRANS_RUNS", "BP4D_ROOT", "DISFA_ROOT"} <= ours


def test_systemd_accepts_the_units_except_for_missing_programs(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    units = [shutil.copy(path, tmp_path) for path in (SITE / "systemd").iterdir()]
    assert len(units) == 4
    found = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    complaints = [
        line
        for line in found.stderr.splitlines()
        if line and not re.search(r"Command /opt/fantrans/.*No such file or directory", line)
    ]
    assert complaints == []


def test_deployments_name_flows_by_module_and_older_ones_are_the_same_deployments():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for entrypoint in {deployment["entrypoint"] for deployment in deployments}:
        module, name = entrypoint.rsplit(".", 1)
        assert isinstance(getattr(import_module(module), name), Flow)
        before = f"{module.replace('.', '/')}.py:{name}"
        assert deployment_key(before, "bp4d") == deployment_key(entrypoint, "bp4d")


def test_the_compose_file_pins_every_image_and_has_workers_for_both_pools():
    services = yaml.safe_load((SITE / "compose.yaml").read_text())["services"]
    assert all(re.search(r":\d+\.\d+", service["image"]) for service in services.values())
    assert re.match(r"FROM python:\d+\.\d+\.\d+-", (SITE / "Dockerfile").read_text())
    pools = {tuple(service["command"][5:7]) for service in services.values() if "worker" in service.get("command", [])}
    assert pools == {("--pool", "gpu"), ("--pool", "cpu")}
    text = "".join(Path(path).read_text() for path in (SITE / "systemd").iterdir())
    assert {"--pool gpu", "--pool cpu"} <= set(re.findall(r"--pool \w+", text))


def test_every_schedule_has_a_time_zone():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    zones = [schedule.get("timezone") for each in deployments for schedule in each.get("schedules", [])]
    assert zones == [f"{{{{ ${TIMEZONE} }}}}"] * len(zones)
    assert len(zones) > 5


def test_the_time_zone_is_the_users_or_utc(monkeypatch):
    monkeypatch.delenv(TIMEZONE, raising=False)
    assert _timezone() == "UTC"
    monkeypatch.setenv(TIMEZONE, "Europe/Berlin")
    assert _timezone() == "Europe/Berlin"
    monkeypatch.setenv(TIMEZONE, "Europe/Berln")
    with pytest.raises(UsageError, match=rf"'Europe/Berln' of {TIMEZONE} does not exist; did you mean Europe/Berlin\?"):
        _timezone()

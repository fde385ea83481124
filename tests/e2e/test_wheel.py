"""The package as others install it: a wheel in a virtual environment of its own, used far from any checkout.

Takes two minutes on two cores, most of it for the quick demo and for a server.
"""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import free_port
from tests.small_catalog import SMALL_DEMO

CHECKOUT = Path(__file__).parents[2]
TIMEOUT_S = 600


def run(*words, cwd, **more):
    ended = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **more)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, CHECKOUT, cwd=out)
    assert len(list(out.glob("*.tar.gz"))) == 1
    (built,) = out.glob("*.whl")
    return built


class Installed:
    """An environment with the wheel; other packages are those of this process."""

    def __init__(self, folder, wheel):
        self.bin, self.home = folder / "env/bin", folder
        venv.create(folder / "env")
        python = self.bin / "python"
        pip = (sys.executable, "-m", "pip", "--python", python)
        run(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=folder)
        (self.site,) = folder.glob("env/lib/python*/site-packages")
        (self.site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        ours = ("FANTRANS_", "PREFECT_", "PYTHON", "BP4D", "DISFA")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}

    def fantrans(self, *words, cwd):
        return run(self.bin / "fantrans", *words, cwd=cwd, env=self.environment)


@pytest.fixture(scope="module")
def installed(disk, wheel):
    folder = disk / "installed"
    folder.mkdir()
    return Installed(folder, wheel)


@pytest.fixture(scope="module")
def project(installed):
    """A new project in which the quick demo has run, on fewer faces."""
    installed.fantrans("init", "mine", cwd=installed.home)
    folder = installed.home / "mine"
    catalog = folder / "data_catalog.yaml"
    content = yaml.safe_load(catalog.read_text())
    content["datasets"]["demo_quick"]["rendered"] = SMALL_DEMO
    catalog.write_text(yaml.safe_dump(content))
    assert "F1 in percent: demo_quick on demo_quick" in installed.fantrans("demo", "--quick", cwd=folder)
    return folder


def test_the_wheel_holds_what_runs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    assert {name.split("/")[0] for name in names} == {
        "fantrans", "flows", "models", "pipeline", wheel.name.rsplit("-", 3)[0] + ".dist-info"
    }  # fmt: skip
    shipped = {name.removeprefix("pipeline/shipped/") for name in names if name.startswith("pipeline/shipped/")}
    assert shipped == {"data_catalog.yaml", "prefect.yaml", *(f"configs/{p.name}" for p in CHECKOUT.glob("configs/*"))}
    templates = {name for name in names if name.startswith("pipeline/report/templates/")}
    assert templates == {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "pipeline/report/templates").iterdir()}
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "var"))]


def test_the_demo_runs_in_a_new_project_and_writes_only_there(installed, project):
    assert {path.name for path in (project / "var").iterdir()} == {"cache", "data", "runs", "work"}
    checked = installed.fantrans("catalog", "check", "demo_quick", cwd=project / "configs")
    assert checked.endswith("demo_quick is ready; run `fantrans refresh demo_quick --dry-run`\n")
    assert {path.name for path in installed.home.iterdir()} == {"env", "mine"}
    assert not list(installed.site.glob("**/var"))


def test_without_a_project_the_working_folder_holds_the_outputs(installed, tmp_path):
    shown = subprocess.run(
        [installed.bin / "fantrans", "catalog", "ls"],
        cwd=tmp_path,
        env=installed.environment | {"COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f" {tmp_path}/var/runs " in shown
    assert f" {installed.site}/models/weights/fan-64.safetensors " in shown


def test_a_deployment_runs_the_installed_flows_in_the_project(installed, project):
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", (CHECKOUT / "docs/operations.md").read_text(), re.M | re.S)
    settings = yaml.safe_load(example)
    settings["deployments"].append(
        {
            "name": "demo",
            "entrypoint": "flows.main_job.main_job",
            "parameters": {"dataset": "demo_quick", "device": "cpu"},
            "work_pool": settings["deployments"][0]["work_pool"],
        }
    )
    (project / "prefect.yaml").write_text(yaml.safe_dump(settings))
    port = str(free_port())
    address = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with (project / "up.log").open("w+") as log, subprocess.Popen(
        [installed.bin / "fantrans", "ops", "up", "--port", port],
        cwd=project, env=installed.environment | address, stdout=log, stderr=log,
    ) as server:  # fmt: skip
        try:
            while "Ctrl-C stops it" not in Path(log.name).read_text():
                assert server.poll() is None, Path(log.name).read_text()
                try:
                    server.wait(0.5)
                except subprocess.TimeoutExpired:
                    continue
            words = ("-m", "prefect", "--no-prompt", "deployment", "run", "main-job/demo", "--watch")
            run(installed.bin / "python", *words, cwd=installed.home, env=installed.environment | address)
        finally:
            server.terminate()
    shown = Path(project / "up.log").read_text()
    assert {"refresh-cache/lab: deployed", "train-folds/lab: deployed"} <= set(shown.splitlines())
    assert "prefect --no-prompt deployment run refresh-cache/lab --watch" in shown
    assert not (installed.home / "var").exists()
    assert len(list((project / "var/runs").glob("*/run.json"))) == 1

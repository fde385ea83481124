"""Measure what Prefect costs a refresh: a deployment's run against its stages, and a run with nothing to do.

Needs `fantrans ops up`, the PREFECT_API_URL that it prints, and a data set with raw frames (`fantrans
render bp4d-synthetic`) and no cache:

    python benchmarks/flow_overhead.py refresh-cache/bp4d-synthetic
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from typing import Any

from prefect.artifacts import Artifact
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

_POLL_S = 0.5


def watched(deployment: str, parameters: dict[str, Any]) -> FlowRun:
    """Run the deployment and return its completed run; exit if it fails."""
    run = run_deployment(deployment, parameters=parameters, poll_interval=_POLL_S)
    assert isinstance(run, FlowRun)
    if run.state is None or not run.state.is_completed():
        sys.exit(f"{deployment} ended as {run.state}")
    return run


def stage_seconds(dataset: str) -> float:
    """Return the seconds of the newest refresh's stages, from its artifact."""
    artifact = Artifact.get(f"refresh-{dataset}")
    assert artifact is not None
    rows = [line.split("|") for line in str(artifact.data).splitlines() if line.startswith("| ")][1:]
    return sum(float(row[5].replace(",", "")) for row in rows)


def measure(deployment: str, parameters: dict[str, Any]) -> dict[str, float]:
    """Return seconds of a run: until its flow starts, of the flow, of its stages, and in total."""
    run = watched(deployment, parameters)
    times = (run.created, run.start_time, run.end_time)
    created, started, ended = (time for time in times if isinstance(time, datetime))
    stages = stage_seconds(deployment.split("/")[1])
    flow = (ended - started).total_seconds()
    return {
        "start_up_s": round((started - created).total_seconds(), 1),
        "flow_s": round(flow, 1),
        "stages_s": round(stages, 1),
        "overhead_percent": round(100 * (flow - stages) / max(stages, 0.1), 2),
        "total_s": round((ended - created).total_seconds(), 1),
    }


def main() -> None:
    """Print both runs as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("deployment")
    parser.add_argument("--parameters", type=json.loads, default={})
    arguments = parser.parse_args()
    found = {name: measure(arguments.deployment, arguments.parameters) for name in ("refresh", "nothing to do")}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

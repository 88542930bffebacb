"""The Prometheus page of a host that supervisor runs: every process, under a name that outlives restarts."""

from __future__ import annotations

import urllib.request

from supervision_project import Project, until


def series(project: Project) -> dict[str, float]:
    with urllib.request.urlopen(f"{project.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for line in lines if not line.startswith("#") for name, _, value in [line.rpartition(" ")]
    }


def one(found: dict[str, float], name: str, **labels: str) -> float | None:
    """The value of the one series with these labels."""
    parts = [f'{label}="{value}"' for label, value in labels.items()]
    values = [
        value for key, value in found.items() if key.startswith(name + "{") and all(part in key for part in parts)
    ]
    return values[0] if len(values) == 1 else None


def test_a_restart_brings_no_new_series_and_is_counted(running: Project):
    """Hub, watch, store, workers and gateway are there; a killed worker comes back under the same labels."""
    processes = ["hub", "watch", "store", "greeting:greeting_0", "greeting:greeting_1", "gateway:gateway_0"]
    up = {"mesh_worker_up", "mesh_supervised_up", "mesh_supervised_crash_loop"}
    until(lambda: all(one(series(running), name, process=each) is not None for name in up for each in processes))
    until(lambda: one(series(running), "mesh_hub_instances", process="hub") == 4)
    before = series(running)
    assert all(one(before, "mesh_worker_up", process=each) == 1 for each in processes)
    assert one(before, "mesh_replicas_wanted", service="greeting") == 2
    assert one(before, "mesh_replicas_running", service="greeting") == 2
    assert one(before, "mesh_build_info", process="hub") == 1

    running.kill(running.pids()["greeting:greeting_0"])
    failures = {"process": "greeting:greeting_0", "how": "killed by SIGKILL"}
    until(lambda: one(series(running), "mesh_supervised_failures_total", **failures) == 1)
    until(lambda: one(series(running), "mesh_worker_up", process="greeting:greeting_0") == 1)
    after = series(running)
    assert one(after, "mesh_supervised_starts_total", process="greeting:greeting_0") == 2
    # The count of this failure, and the worker id of the new life. (A method brings its series with its first call.)
    own = [
        name for name in set(after) - set(before) if 'process="greeting:greeting_0"' in name and "method=" not in name
    ]
    assert {name.partition("{")[0] for name in own} == {"mesh_supervised_failures_total", "mesh_build_info"}

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
    gauges = ["mesh_supervised_up", "mesh_supervised_crash_loop"]

    page: dict[str, float] = {}

    def settled() -> bool:
        """Each process writes its part of the page by itself, the watch what it saw at its last look."""
        nonlocal page
        page = series(running)
        return (
            all(one(page, "mesh_worker_up", process=each) == 1 for each in processes)
            and all(one(page, name, process=each) is not None for name in gauges for each in processes)
            and one(page, "mesh_hub_instances", process="hub") == 4
            and one(page, "mesh_replicas_running", service="greeting") == 2
        )

    until(settled)
    before = page
    assert one(before, "mesh_replicas_wanted", service="greeting") == 2
    assert one(before, "mesh_build_info", process="hub") == 1

    process = "greeting:greeting_0"
    running.kill(running.pids()[process])

    def replaced() -> bool:
        """The failure and the start are counted by the watch; `mesh_build_info` is the new life's own, by its id."""
        nonlocal page
        page = series(running)
        return (
            one(page, "mesh_supervised_failures_total", process=process, how="killed by SIGKILL") == 1
            and one(page, "mesh_supervised_starts_total", process=process) == 2
            and one(page, "mesh_worker_up", process=process) == 1
            and any(name.startswith("mesh_build_info{") for name in fresh(page))
        )

    def fresh(page: dict[str, float]) -> set[str]:
        """The series that this process has since `before`. (A method brings its series with its first call.)"""
        return {name for name in set(page) - set(before) if f'process="{process}"' in name and "method=" not in name}

    until(replaced)
    # Of the same page: on another one a process may be missing.
    own = {name.partition("{")[0] for name in fresh(page)}
    assert own == {"mesh_supervised_failures_total", "mesh_build_info"}

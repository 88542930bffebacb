"""`mesh up --foreground`: one process that shows the logs, and whose end is the end of all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from supervision_project import Project, until


@contextmanager
def foreground(project: Project) -> Iterator[subprocess.Popen[str]]:
    with (project.root / "out").open("w") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli.main", "--json", "up", "--foreground"],
            cwd=project.root,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def lines(project: Project) -> list[dict[str, object]]:
    return [json.loads(line) for line in (project.root / "out").read_text().splitlines() if line.startswith("{")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_shows_the_logs_and_stops_everything_at_a_signal(project: Project, number: signal.Signals):
    """From the first line of each process to its last; exit code 0, nothing left."""
    project.write(greetings=1)
    with foreground(project) as child:
        until(lambda: (project.root / "out").exists() and any("processes" in line for line in lines(project)))
        until(lambda: {"hub", "greeting_0", "gateway_0"} <= {line.get("process") for line in lines(project)})
        child.send_signal(number)
        assert child.wait(60) == 0
    assert project.members() == []
    assert any(line.get("event") == "worker.stopped" and line["process"] == "greeting_0" for line in lines(project))


def test_it_ends_when_supervisord_does_and_leaves_nothing_behind(project: Project):
    project.write(greetings=1)
    with foreground(project) as child:
        until(lambda: (project.root / "out").exists() and any("processes" in line for line in lines(project)))
        os.kill(project.supervisord(), signal.SIGKILL)
        assert child.wait(60) == 1
    assert project.members() == []


def test_a_start_that_fails_leaves_nothing_running(project: Project):
    project.trouble("broken")
    with foreground(project) as child:
        assert child.wait(60) == 1
    assert project.members() == []

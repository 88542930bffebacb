"""Nothing that a worker has started outlives it, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from supervision_project import Project, until

from mesh.supervisord import process_tree

#: Forks in all the ways that there are; each child writes its pid, and ignores SIGTERM.
SERVICE = """\
import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import mesh
from mesh import http, rpc

STAY = "import os, signal, time; signal.signal(15, signal.SIG_IGN); open(f'child.{os.getpid()}', 'w'); time.sleep(600)"


def stay():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(f"child.{os.getpid()}", "w").close()
    time.sleep(600)


def daemonize():
    os.setsid()
    if os.fork() == 0:
        stay()
    os._exit(0)


class Greeting(mesh.Service):
    @http.get("/fork")
    @rpc
    async def fork(self) -> int:
        context = multiprocessing.get_context("fork")
        self.children = [
            subprocess.Popen([sys.executable, "-c", STAY]),
            subprocess.Popen([sys.executable, "-c", STAY], start_new_session=True),
            subprocess.Popen([sys.executable, "-c", STAY], env={}),
            subprocess.Popen(["sh", "-c", f'{sys.executable} -c "{STAY}" & wait']),
            context.Process(target=stay),
            context.Process(target=daemonize),
        ]
        for child in self.children[4:]:
            child.start()
        return os.getpid()

    @http.get("/bomb")
    @rpc
    async def bomb(self) -> int:
        for _ in range(10):
            multiprocessing.get_context("fork").Process(target=stay, daemon=True).start()
        return os.getpid()

    @http.get("/leave")
    @rpc
    async def leave(self) -> None:
        os._exit(3)
"""


@pytest.fixture
def forking(project: Project) -> Project:
    (project.root / "svc.py").write_text(SERVICE)
    project.write(greetings=1)
    project.up()
    return project


def children(project: Project) -> list[int]:
    return [int(path.suffix[1:]) for path in project.root.glob("child.*")]


def ask(project: Project, path: str) -> None:
    with urllib.request.urlopen(project.url + path, timeout=10):
        pass


def fork(project: Project, path: str = "/fork", count: int = 6) -> list[int]:
    for old in project.root.glob("child.*"):
        old.unlink()
    ask(project, path)
    until(lambda: len(children(project)) == count)
    found = children(project)
    assert all(process_tree.alive(pid) for pid in found)
    return found


def gone(pids: list[int]) -> None:
    until(lambda: not [pid for pid in pids if process_tree.alive(pid)], 15.0)


def test_nothing_survives_a_worker(forking: Project):
    """After a kill -9, an exit of its own, a restart, and `mesh down`; another project's process is not touched."""
    name = "greeting:greeting_0"
    found = fork(forking)
    first = forking.pids()[name]
    forking.kill(first)
    gone(found)
    until(lambda: forking.pids()[name] not in (0, first) and forking.states()[name] == "RUNNING")

    found = fork(forking, "/bomb", 10)
    with pytest.raises(OSError):  # noqa: PT011  # the gateway's own error, whichever it is
        ask(forking, "/leave")
    gone(found)
    until(lambda: forking.states()[name] == "RUNNING")

    found = fork(forking)
    forking.command("supervisorctl", "restart", name)
    gone(found)

    found = fork(forking)
    forking.command("mesh", "down")
    assert not [pid for pid in found if process_tree.alive(pid)]
    assert forking.members() == []


def test_only_what_belongs_to_the_process_is_ended(tmp_path: Path):
    """By its group, or by all of its marks; never what supervisord still runs."""
    import subprocess

    from mesh.supervisord import leftovers

    marks = {"SUPERVISOR_PROCESS_NAME": f"p-{os.getpid()}", "SUPERVISOR_SERVER_URL": str(tmp_path)}
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    other = {**marks, "SUPERVISOR_PROCESS_NAME": "other"}
    started = {
        "leader": subprocess.Popen(sleep, env={}, start_new_session=True),
        "marked": subprocess.Popen(sleep, env=marks, start_new_session=True),
        "spared": subprocess.Popen(sleep, env=marks, start_new_session=True),
        "other": subprocess.Popen(sleep, env=other, start_new_session=True),
        "none": subprocess.Popen(sleep, env={}, start_new_session=True),
    }
    try:
        for each in started.values():
            until(lambda each=each: process_tree.process_group(each.pid) == each.pid and process_tree.command(each.pid))
        until(lambda: b"SUPERVISOR_PROCESS_NAME=other" in process_tree.variables(started["other"].pid))
        ended = leftovers.end(started["leader"].pid, marks, spare=[started["spared"].pid])
        assert sorted(ended) == sorted(started[name].pid for name in ("leader", "marked"))
        assert started["marked"].wait(10) == -signal.SIGKILL
        assert [name for name in ("spared", "other", "none") if started[name].poll() is not None] == []
    finally:
        for each in started.values():
            each.kill()
            each.wait()


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("/usr/bin/python3 /srv/.venv/bin/supervisord -c supervisord.conf", True),
        ("/usr/bin/python3.11 -m supervisor.supervisord -n", True),
        ("/usr/bin/supervisord -c x", True),
        ("vim supervisord.conf", False),
        ("vim supervisord", False),
        ("/usr/bin/python3 -m pytest -k supervisord", False),
        ("", False),
    ],
)
def test_only_a_supervisord_is_taken_for_one(monkeypatch: pytest.MonkeyPatch, command: str, found: bool):
    """`mesh down` ends what it takes for one: not an editor that has its configuration open."""
    monkeypatch.setattr(process_tree, "command", lambda pid: command)
    assert process_tree.is_supervisord(1) is found


def test_the_start_of_a_process_is_known_to_a_tick():
    before = time.time()
    with subprocess.Popen(["sleep", "60"]) as child:
        after = time.time()
        started_at = process_tree.started_at(child.pid)
        child.kill()
    assert started_at is not None
    assert before - 0.03 <= started_at <= after + 0.03
    assert process_tree.started_at(child.pid) is None

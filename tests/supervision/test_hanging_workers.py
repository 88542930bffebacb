"""A worker that hangs is replaced, whatever holds it up; why is counted and shown."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from supervision_project import Project, until

from mesh.policy.liveness import EXIT_BLOCKED, EXIT_MEMORY, EXIT_START
from mesh.supervisord.control import Process
from mesh.supervisord.watch import LATE_TICK_S, Watch
from mesh.telemetry import heartbeats, restarts

SERVICE = """\
import asyncio
import ctypes
import os
import time
from pathlib import Path

import mesh
from mesh import http, rpc


class Greeting(mesh.Service):
    async def started(self):
        if Path("never").exists():
            Path("never").unlink()
            await asyncio.Event().wait()

    @http.get("/pid")
    @rpc(idempotent=True)
    async def pid(self) -> int:
        return os.getpid()

    @http.post("/block")
    @rpc
    async def block(self) -> None:
        time.sleep(600)

    @http.post("/hold")
    @rpc
    async def hold(self) -> None:
        # Keeps the interpreter's lock: no thread of this process runs any more.
        ctypes.PyDLL(None).sleep(600)

    @http.post("/take/{mib}")
    @rpc
    async def take(self, mib: int) -> int:
        return len(bytearray(mib * 2**20))
"""
NAMES = ("greeting:greeting_0", "greeting:greeting_1")


class Set:
    """A project whose two workers misbehave."""

    def __init__(self, project: Project) -> None:
        self.project = project
        (project.root / "svc.py").write_text(SERVICE)
        project.write('liveness = "2s"\nstart_timeout = "3s"\nmemory = "200MiB"\n', greetings=2)
        project.up()
        self.pids = project.pids()

    def ask(self, path: str, timeout: float = 10.0, method: str = "GET") -> str:
        request = urllib.request.Request(self.project.url + path, method=method)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return str(answer.read().decode())

    def post(self, path: str) -> None:
        """A request whose answer nobody waits for."""

        def ask() -> None:
            with contextlib.suppress(OSError):
                self.ask(path, 60.0, "POST")

        threading.Thread(target=ask, daemon=True).start()

    def beats(self) -> dict[str, heartbeats.Heartbeat]:
        return {each.process: each for each in heartbeats.read(self.project.run)}

    def replaced(self, reasons: dict[str, int]) -> list[str]:
        """Wait until these restarts have been counted and all workers are ready; those that were replaced."""

        def counted() -> bool:
            found = restarts.read(self.project.run).get("greeting", {})
            ready = [each.process for each in self.beats().values() if each.stage == "ready" and not each.trouble()]
            return found == reasons and ready == list(NAMES)

        until(counted, 40.0)
        before, self.pids = self.pids, self.project.pids()
        return [name for name in NAMES if before[name] != self.pids[name]]

    def how(self, name: str) -> str:
        found = json.loads((self.project.run / "crashes.json").read_text())["crashes"]
        return next(str(each["how"]) for each in found if each["process"] == name)


@pytest.fixture
def hanging(project: Project) -> Set:
    return Set(project)


def test_a_worker_that_hangs_is_replaced(hanging: Set):
    """Blocked in Python, in C, stopped by a signal, at its start, at its limit of memory; each is counted and shown."""
    project = hanging.project
    hanging.post("/block")
    until(lambda: [each for each in hanging.beats().values() if each.blocked_s])
    (blocked,) = [each for each in hanging.beats().values() if each.blocked_s]
    assert blocked.where.endswith("in block")
    assert f"[!] worker: {blocked.process}: " in hanging.ask("/readyz?verbose")
    reasons = {"blocked": 1}
    assert hanging.replaced(reasons) == [blocked.process]
    assert hanging.how(blocked.process) == f"exit status {EXIT_BLOCKED}"
    assert "time.sleep(600)" in (project.root / "logs" / f"{blocked.process[9:]}.log").read_text()

    # One is stopped by a signal, the other holds the interpreter's lock; neither can help itself.
    os.kill(hanging.pids[NAMES[0]], signal.SIGSTOP)
    until(lambda: hanging.beats()[NAMES[0]].trouble())
    hanging.post("/hold")
    reasons["silent"] = 2
    assert hanging.replaced(reasons) == list(NAMES)

    (project.root / "never").touch()
    project.kill(hanging.pids[NAMES[0]])
    reasons |= {"killed": 1, "start_timeout": 1}
    assert hanging.replaced(reasons) == [NAMES[0]]
    assert hanging.how(NAMES[0]) == f"exit status {EXIT_START}"

    with pytest.raises(urllib.error.HTTPError):
        hanging.ask("/take/1000", 10.0, "POST")
    reasons["memory"] = 1
    (drained,) = hanging.replaced(reasons)
    assert hanging.how(drained) == f"exit status {EXIT_MEMORY}"

    page = hanging.ask("/metrics")
    counted = [line for line in page.splitlines() if line.startswith("mesh_worker_restarts_total{")]
    (silent,) = [line for line in counted if 'reason="silent"' in line and 'service="greeting"' in line]
    assert silent.endswith(" 2.0")
    assert json.loads(project.command("mesh", "ps", "--json").stdout)["restarts"] == {"greeting": reasons}
    doctor = project.command("mesh", "doctor", check=False)
    assert "blocked 1" in doctor.stdout + doctor.stderr


class Control:
    """What the watch asks supervisord for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def processes(self) -> list[Process]:
        return [Process(NAMES[0], "greeting", "RUNNING", self.pid, 1.0, "", "")]

    def hold(self, name: str, seconds: float, why: str) -> None:
        pass


@pytest.mark.parametrize(
    ("age_s", "tick_s", "pid", "started", "killed"),
    [
        (40.0, 5.0, "its", "its", True),
        (30.0, 5.0, "its", "its", False),
        (40.0, LATE_TICK_S + 1.0, "its", "its", False),
        (40.0, 5.0, "another", "its", False),
        (40.0, 5.0, "its", "another", False),
    ],
)
def test_only_a_silent_worker_is_killed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    age_s: float,
    tick_s: float,
    pid: str,
    started: str,
    killed: bool,
):
    """Not one that only is late, nor after a pause of the watch, nor a process that has got the number."""
    sent: list[int] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda descriptor, number: sent.append(number))
    now = 1000.0
    own = heartbeats.started(os.getpid())
    assert own is not None
    writer = heartbeats.Writer(tmp_path)
    beat = heartbeats.Heartbeat(
        process=NAMES[0],
        pid=os.getpid(),
        started=own,
        at=now + tick_s - age_s,
        stage="ready",
        liveness_s=30.0,
    )
    writer.write(beat)
    if started == "another":
        monkeypatch.setattr(
            heartbeats, "read", lambda run_dir: [beat.__class__(**{**_fields(beat), "started": own - 1})]
        )
    control = Control(os.getpid() if pid == "its" else os.getpid() + 1)
    clock = [now]
    watch = Watch(control, tmp_path, now=lambda: clock[0])  # type: ignore[arg-type]
    clock[0] += tick_s
    watch.event("TICK_5", {})
    assert sent == ([signal.SIGKILL] if killed else [])
    writer.close()


def _fields(beat: heartbeats.Heartbeat) -> dict[str, object]:
    return {name: getattr(beat, name) for name in beat.__struct_fields__}

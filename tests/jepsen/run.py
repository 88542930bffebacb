"""A whole run: the mesh, its clients, the nemesis, and the verdict."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.transport.curve import key_store

from . import cable
from .check import REGISTER, Report, judge, load
from .history import Event, Recorder
from .nemesis import Nemesis
from .processes import Processes

ROOT: Final = Path(__file__).parents[2]
BIN: Final = Path(sys.executable).parent
FAULTS: Final = ("kill", "freeze", "clock", "disk", "cut")
#: Before the first fault, and after the last: what is in doubt is looked at.
QUIET_S: Final = 3.0
DISK_SIZE: Final = "1g"
_FAKETIME: Final = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
)

SETTINGS: Final = """\
[mesh]
run_dir = "{root}/run"
log_dir = "{root}/logs"
bind = "{bind}"
hubs = ["{hub}"]
[store]
dir = "{root}/data"
lease = "{lease_s:g}s"
[log]
level = "warning"
"""


@dataclass(frozen=True)
class Plan:
    """Attributes:
    seconds: how long the clients work.
    lease_s: of the store.
    freeze_s, gap_s: see Nemesis.
    pause_s: mean pause of each caller between two operations.
    """

    seconds: float
    seed: int
    faults: Sequence[str] = FAULTS
    lease_s: float = 10.0
    freeze_s: tuple[float, float] = (5.0, 60.0)
    gap_s: tuple[float, float] = (1.0, 10.0)
    pause_s: float = 0.01
    workers: tuple[int, int] = (2, 1)
    mesh_clients: tuple[int, int] = (1, 1)
    http_clients: int = 1


class Run:
    """One run. `skipped` says by name which faults cannot be made on this machine."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.root = Path(tempfile.mkdtemp(prefix="mesh-"))
        for name in ("run", "logs", "data", "history"):
            (self.root / name).mkdir(mode=0o700)
        self.history = self.root / "history"
        self.skipped: dict[str, str] = {}
        self.recorder = Recorder(self.history / "run.jsonl", "run")
        self.processes = Processes(self.root / "logs", self.root, self._ended)
        self.cable = self._cable()
        self.clock = self._clock()
        self.disk = self._disk()
        self.ports = [8081, 8082] if self.cable else [_free_port(), _free_port()]

    # --- what can be done here ----------------------------------------------------------------------------------

    def _cable(self) -> cable.Cable | None:
        lacking = cable.missing()
        if "cut" in self.plan.faults and not lacking:
            return cable.Cable()
        if lacking:
            self.skipped["cut"] = lacking
        return None

    def _clock(self) -> Path | None:
        if "clock" not in self.plan.faults:
            return None
        if not _faketime():
            self.skipped["clock"] = "missing: apt install faketime"
            return None
        file = self.root / "clock"
        file.write_text("+0")
        return file

    def _disk(self) -> Path | None:
        if "disk" not in self.plan.faults:
            return None
        data = self.root / "data"
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE},mode=700", "mesh-jepsen", str(data)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            self.skipped["disk"] = f"a small disk cannot be mounted: {done.stderr.strip()}"
            return None
        return data

    # --- the mesh -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        plan, add = self.plan, self.processes.add
        here: list[str] = self.cable.inside("a") if self.cable else []
        there: list[str] = self.cable.inside("b") if self.cable else []
        hub = f"tcp://{cable.ADDRESSES['a']}:7000" if self.cable else f"ipc://{self.root}/run/hub.sock"
        bind = "tcp://eth0:*" if self.cable else "ipc"
        text = SETTINGS.format(root=self.root, bind=bind, hub=hub, lease_s=plan.lease_s)
        if self.cable:
            # What is reached from another host is encrypted, or does not start.
            for name in ("hub", "mesh-store", "worker", "gateway", "client"):
                key_store.make(self.root / "keys", name)
            text += '[keys]\ndir = "keys"\n'
        (self.root / "mesh.toml").write_text(text)
        mesh = str(BIN / "mesh")
        env = {"PYTHONPATH": str(ROOT), "MESH_HISTORY": str(self.history)}
        fake = {}
        if self.clock is not None:
            fake = {
                "LD_PRELOAD": _faketime(),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_DONT_RESET": "1",
            }
        add("hub-0", [*here, mesh, "hub"], env)
        add("store-0", [*here, mesh, "store"], {**env, **fake})
        services = ["tests.jepsen.services:Register", "tests.jepsen.services:Ledger"]
        for place, side in enumerate((here, there)):
            for number in range(plan.workers[place]):
                add(
                    f"worker-{'ab'[place]}{number}",
                    [*side, mesh, "run", *services],
                    {**env, "MESH_KEYS_NAME": "worker"},
                )
        for number, port in enumerate(self.ports):
            add(f"gateway-{number}", [*here, mesh, "gateway", "--port", str(port)], env)
        for place, side in enumerate((here, there)):
            for number in range(plan.mesh_clients[place]):
                add(f"client-{'ab'[place]}{number}", [*side, *self._client("mesh", f"m{'ab'[place]}{number}")], env)
        for number in range(plan.http_clients):
            urls = ["--urls", *(f"http://127.0.0.1:{port}" for port in self.ports)]
            add(f"client-h{number}", [*here, *self._client("http", f"h{number}"), *urls], env)
        self.processes.watch()

    def _client(self, kind: str, name: str) -> list[str]:
        words = [sys.executable, "-m", "tests.jepsen.client", kind, "--name", name, "--root", str(self.root)]
        words += ["--history", str(self.history), "--seed", str(self.plan.seed), "--pause", str(self.plan.pause_s)]
        return words

    def _ended(self, name: str, why: str) -> None:
        self.recorder.write(Event(time.monotonic(), "exit", key=name, value=why))

    async def trouble(self) -> None:
        """Let the clients work, and the nemesis too."""
        plan = self.plan
        nemesis = Nemesis(
            self.processes,
            self.recorder,
            seed=plan.seed,
            freeze_s=plan.freeze_s,
            gap_s=plan.gap_s,
            cable=self.cable,
            clock=self.clock,
            disk=self.disk,
        )
        ends_at = time.monotonic() + plan.seconds
        await asyncio.sleep(QUIET_S)
        await nemesis.run(list(plan.faults), ends_at - plan.freeze_s[1] - QUIET_S)
        await asyncio.sleep(max(QUIET_S, ends_at - time.monotonic()))

    def settle(self) -> None:
        """End everything, so that nothing that is open can take effect any more; then start it anew, and look."""
        names = self.processes.names
        self.processes.stop(names("client"))
        rest = names("gateway", "worker", "store", "hub")
        for kind in ("gateway", "worker", "store", "hub"):
            self.processes.stop(names(kind))
        self.recorder.write(Event(time.monotonic(), "barrier"))
        history = load(sorted(self.history.glob("*.jsonl")))
        keys = self.root / "registers"
        keys.write_text("\n".join(sorted({each.key for each in history.by_verb(*REGISTER)})))
        self.processes.again(list(reversed(rest)))
        words = [
            *(self.cable.inside("a") if self.cable else []),
            *self._client("collect", "final"),
            "--keys",
            str(keys),
        ]
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        if done.returncode:
            raise RuntimeError(f"what is stored could not be read: {done.stderr[-2000:]}")
        self.processes.stop(names("gateway", "worker"))
        self.processes.stop(names("store", "hub"))

    def save(self, to: Path) -> None:
        """All of the history as one file, in the order of time."""
        lines = [line for path in self.history.glob("*.jsonl") for line in path.read_bytes().splitlines(keepends=True)]
        with to.open("wb") as file:
            file.writelines(line for line in lines if line.endswith(b"\n"))

    def report(self) -> Report:
        return judge(load(sorted(self.history.glob("*.jsonl"))))

    def close(self) -> None:
        """Leave no process, mount, namespace or folder behind."""
        self.processes.close()
        self.recorder.close()
        if self.cable is not None:
            self.cable.close()
        if self.disk is not None:
            subprocess.run(["umount", "-l", str(self.disk)], capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)


def run(plan: Plan, save_to: Path | None = None, keep_logs: Path | None = None) -> tuple[Report, Run]:
    """The verdict on one run."""
    made = Run(plan)
    try:
        made.start()
        asyncio.run(made.trouble())
        made.settle()
        report = made.report()
    finally:
        if save_to is not None:
            made.save(save_to)
        if keep_logs is not None:
            shutil.copytree(made.root / "logs", keep_logs, dirs_exist_ok=True)
        made.close()
    return report, made


def _faketime() -> str:
    return next((path for path in _FAKETIME if Path(path).exists()), "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

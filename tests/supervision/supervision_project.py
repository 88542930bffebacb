"""A project in a temporary directory, run by a real supervisord with a real hub, workers and gateways."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.config import Settings, load
from mesh.deploy.down import take_down
from mesh.deploy.up import Up, bring_up
from mesh.errors import MeshError
from mesh.supervisord import layout, process_tree
from mesh.supervisord.control import Control, Process

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

# What it does wrong stands in a file: trouble, for every process, or trouble.greeting_1, for one. A second word in it
# means only a release of that colour.
SERVICE = """\
import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import mesh
from mesh import http, rpc


def trouble():
    for name in ("trouble", "trouble." + os.environ.get("SUPERVISOR_PROCESS_NAME", "")):
        if os.path.exists(name):
            word, _, colour = Path(name).read_text().partition(" ")
            if colour in ("", os.environ.get("COLOUR", "")):
                return word
    return ""


if trouble() == "broken":
    print("Traceback: the service is broken", flush=True)
    sys.exit(1)


def late():
    # The first that starts is well until the second one does; then both end, the first one first.
    first = Path("late.pid")
    if not first.exists():
        first.write_text(str(os.getpid()))
        return
    pid = int(first.read_text())
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    os._exit(3)


class Greeting(mesh.Service):
    async def started(self):
        if trouble() == "never":
            await asyncio.Event().wait()
        if trouble() == "late":
            late()
        if trouble() == "dies":
            asyncio.get_running_loop().call_later(0.4, os._exit, 3)

    @http.get("/hello/{name}")
    @rpc(idempotent=True)
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"

    @http.get("/environment/{name}")
    @rpc(idempotent=True)
    async def environment(self, name: str) -> str:
        return os.environ.get(name, "")

    @http.get("/slow/{seconds}")
    @rpc
    async def slow(self, seconds: float) -> int:
        Path(f"slow.{os.getpid()}").touch()
        await asyncio.sleep(seconds)
        return os.getpid()


class Second(mesh.Service):
    @http.get("/second")
    @rpc(idempotent=True)
    async def ask(self) -> int:
        return os.getpid()
"""

SETTINGS = """\
[gateway]
port = {port}
replicas = {gateways}
drain = "2s"

[services.greeting]
class = "svc:Greeting"
replicas = {greetings}
{more}
"""


def until(check: Callable[[], object], seconds: float = 60.0) -> None:
    """Return as soon as `check` holds; fail when it never does. (Other tests may have the processors meanwhile.)"""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


class Project:
    """The directory, and what a test needs to know of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = root / "run"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        (root / "svc.py").write_text(SERVICE)
        shutil.copy(ROOT / "supervisord.conf", root)
        self.write()

    def write(self, more: str = "", greetings: int = 2, gateways: int = 1) -> None:
        """Write mesh.toml; `more` belongs to [services.greeting] as far as it has no heads of its own."""
        text = SETTINGS.format(port=self.port, gateways=gateways, greetings=greetings, more=more)
        (self.root / "mesh.toml").write_text(text)

    @property
    def layout(self) -> layout.Layout:
        return layout.read(self.root / "supervisord.conf")

    @property
    def settings(self) -> Settings:
        return load(self.root / "mesh.toml")

    def up(self, **options: Any) -> Up:
        return asyncio.run(bring_up(self.layout, self.settings, **options))

    def members(self) -> list[process_tree.Member]:
        return process_tree.members(self.layout.server_url)

    def supervisord(self) -> int:
        return int((self.run / "supervisord.pid").read_text())

    def processes(self) -> dict[str, Process]:
        control = Control(self.layout.socket)
        try:
            return {each.name: each for each in control.processes()}
        finally:
            control.close()

    def states(self) -> dict[str, str]:
        return {name: process.state for name, process in self.processes().items()}

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.processes().items()}

    def trouble(self, word: str, process: str = "") -> None:
        """What is wrong from now on with what starts; "" for nothing."""
        path = self.root / (f"trouble.{process}" if process else "trouble")
        path.write_text(word) if word else path.unlink()

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command line in the project's directory, as its user types it."""
        module = {"mesh": "mesh.cli.main", "supervisorctl": "supervisor.supervisorctl"}[words[0]]
        done = subprocess.run(
            [sys.executable, "-m", module, *words[1:]],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise AssertionError(f"{words} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        until(lambda: not process_tree.alive(pid))


class Made:
    """Make a project, and clean up after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, prefix: str = "mesh-") -> None:
        # Not tmp_path: a unix socket's path has room for 107 characters.
        self.root = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
        monkeypatch.chdir(self.root)
        for name in [name for name in os.environ if name.startswith("MESH_")]:
            monkeypatch.delenv(name)
        self.project = Project(self.root)

    def __enter__(self) -> Project:
        return self.project

    def __exit__(self, *_: object) -> None:
        if (self.root / "supervisord.conf").exists():
            try:
                take_down(self.project.layout, self.project.run)
            except MeshError:
                for member in self.project.members():
                    os.kill(member.pid, signal.SIGKILL)
        os.chdir("/")
        shutil.rmtree(self.root)

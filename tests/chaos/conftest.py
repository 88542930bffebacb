"""A whole mesh under a real supervisord, in a directory and on a port of its own, and load from wrk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mesh.supervisord.control import Control

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LONG = os.environ.get("MESH_CHAOS") == "long"


def seconds(short: float, long: float) -> float:
    """How long a test goes on: `make chaos` takes the long form."""
    return long if LONG else short


@dataclass
class Load:
    """What wrk saw."""

    requests: int
    non_2xx: int
    socket_errors: str
    text: str

    def assert_spotless(self) -> None:
        assert self.requests > 500, self.text
        assert not self.non_2xx, self.text
        assert not self.socket_errors, self.text


class Wrk:
    """wrk under way; `result` waits for its end."""

    def __init__(self, url: str, duration_s: float, connections: int = 64) -> None:
        words = ["wrk", "-t1", f"-c{connections}", f"-d{int(duration_s)}s", "--timeout", "10s", url]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> Load:
        """End it now, for a test that knows by itself when it has seen enough."""
        self._process.send_signal(signal.SIGINT)
        return self.result()

    def result(self) -> Load:
        text, _ = self._process.communicate(timeout=120)
        requests = re.search(r"(\d+) requests in", text)
        non_2xx = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        errors = re.search(r"Socket errors: (.*)", text)
        return Load(
            int(requests[1]) if requests else 0,
            int(non_2xx[1]) if non_2xx else 0,
            errors[1] if errors else "",
            text,
        )

    def stop(self) -> None:
        if self.running:
            self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Set:
    """The set that runs in `root`."""

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def run(self, *words: str, check: bool = True, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command line in the project's directory, as its user types it."""
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            cwd=self.root,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise AssertionError(f"{words} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def pids(self) -> dict[str, int]:
        """supervisor's name of each running process -> its pid. Not from supervisorctl: a test asks each second."""
        control = Control(self.root / "run/supervisor.sock")
        try:
            return {each.name: each.pid for each in control.processes() if each.state == "RUNNING"}
        finally:
            control.close()

    def get(self, path: str, timeout: float = 10.0) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def instances(self, service: str) -> list[dict[str, Any]]:
        for each in self.get("/mesh")["services"]:
            if each["name"] == service:
                found: list[dict[str, Any]] = each["instances"]
                return found
        return []

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Look again and again; AssertionError when it does not come true in time."""
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, "it did not come true in time"
            time.sleep(0.05)

    @contextmanager
    def load(self, path: str, duration_s: float, connections: int = 64) -> Iterator[Wrk]:
        wrk = Wrk(self.url + path, duration_s, connections)
        try:
            yield wrk
        finally:
            wrk.stop()


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**clean, "PATH": f"{BIN}:{os.environ['PATH']}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


#: What a project runs unless a test says otherwise: class by name.
SERVICES = {
    "greeting": "services.greeting:Greeting",
    "thumbnails": "services.thumbnails:Thumbnails",
    "textstats": "services.textstats:TextStats",
}


@contextmanager
def project(
    replicas: dict[str, int],
    more: str = "",
    gateways: int = 2,
    before: Callable[[Path], object] = lambda root: None,
) -> Iterator[Set]:
    """The project's own supervisord.conf, on a port of its own and with these copies, started and ended.

    Args:
        replicas: 0 leaves a service out.
        more: lines for mesh.toml.
        before: called with the directory before the start.
    """
    # Not pytest's tmp_path: a unix socket's path has room for 107 characters.
    root = Path(tempfile.mkdtemp(prefix="mesh-"))
    port = free_port()
    shutil.copy(ROOT / "supervisord.conf", root)
    text = f"[gateway]\nport = {port}\nreplicas = {gateways}\n"
    for name, copies in replicas.items():
        if copies:
            text += f'[services.{name}]\nclass = "{SERVICES[name]}"\nreplicas = {copies}\n'
    (root / "mesh.toml").write_text(text + more)
    (root / "services").symlink_to(ROOT / "services")
    before(root)
    made = Set(root, port)
    try:
        made.run("mesh", "up")
        yield made
    finally:
        down = made.run("mesh", "down", check=False)
        pid_file = root / "run/supervisord.pid"
        if pid_file.exists():
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
        shutil.rmtree(root)
        assert down.returncode == 0, down.stdout + down.stderr


@pytest.fixture(scope="session")
def wrk() -> None:
    """Skips, by name, where wrk is not installed; CI must have it."""
    if shutil.which("wrk") is None:
        if os.environ.get("CI"):
            pytest.fail("wrk is missing: apt install wrk")
        pytest.skip("wrk is missing: apt install wrk")


@pytest.fixture(scope="session")
def mesh_set() -> Iterator[Set]:
    """Three greetings, two gateways, a hub, and one of each other service."""
    with project({"greeting": 3, "thumbnails": 1, "textstats": 1}) as made:
        yield made

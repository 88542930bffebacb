"""A set of real processes for one measurement: hub, store, gateway and workers, started by `mesh up` in a directory of
its own, and what they use.

Owns: starting and ending it, CPU time and memory of its processes, and wrk.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
MESH = [sys.executable, "-m", "mesh.cli.main"]


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Site:
    """A running set. Attributes: url; dir, its project."""

    def __init__(self, dir: Path, port: int) -> None:
        self.dir = dir
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def run(self, *words: str) -> str:
        """Run a command of `mesh` in the project."""
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*MESH, *words], cwd=self.dir, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"mesh {' '.join(words)}: {done.stdout}\n{done.stderr}")
        return done.stdout

    def pids(self, service: str) -> list[int]:
        """The processes of a service; "gateway" is one."""
        return [each["pid"] for each in json.loads(self.run("ps", "--json"))["instances"] if each["service"] == service]


@contextmanager
def site(services: str, toml: str) -> Iterator[Site]:
    """Start a set, and end it.

    Args:
        services: the module `app` of the project.
        toml: its mesh.toml, with PORT in place of the gateway's port.
    """
    with tempfile.TemporaryDirectory(prefix="mesh-edge-") as name:
        dir, port = Path(name), free_port()
        (dir / "app.py").write_text(services)
        (dir / "mesh.toml").write_text(toml.replace("PORT", str(port)))
        made = Site(dir, port)
        try:
            made.run("up")
            yield made
        finally:
            made.run("down")


def memory_kib(pid: int) -> int:
    """The resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def peak_kib(pid: int) -> int:
    """The largest resident memory that a process ever had."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def cpu_s(pid: int) -> float:
    """The CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wrk(url: str, seconds: float = 5, connections: int = 64, headers: dict[str, str] | None = None) -> float:
    """Requests per second; fails when an answer is not a success."""
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", *(f"-H{k}: {v}" for k, v in (headers or {}).items())]
    out = subprocess.run([*words, url], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out:
        raise SystemExit(f"{url}: {out}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert found is not None, out
    return float(found[1])


def wait_for(port: int, within_s: float = 20.0) -> None:
    """Return when something listens at a port of this machine."""
    over_at = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > over_at:
                raise SystemExit(f"nothing listens at {port}") from None
            time.sleep(0.05)
        else:
            return


@contextmanager
def process(words: list[str], port: int, cwd: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Another server, until the block ends."""
    running = subprocess.Popen(words, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield running
    finally:
        running.terminate()
        running.wait()


@contextmanager
def nginx(port: int, upstream: int) -> Iterator[subprocess.Popen[bytes]]:
    """nginx with `proxy_pass` to another server."""
    with tempfile.TemporaryDirectory(prefix="mesh-nginx-") as name:
        conf = Path(name) / "nginx.conf"
        conf.write_text(
            f"daemon off; worker_processes 1; pid {name}/pid; error_log {name}/error.log;\n"
            "events { worker_connections 2048; }\n"
            f"http {{ access_log off; client_body_temp_path {name}; proxy_temp_path {name}; client_max_body_size 0;\n"
            f"upstream app {{ server 127.0.0.1:{upstream}; keepalive 64; }}\n"
            f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://app; proxy_http_version 1.1;\n"
            'proxy_set_header Connection ""; proxy_request_buffering off; } } }\n'
        )
        with process(["nginx", "-c", str(conf)], port) as running:
            yield running

"""A hub, programs and a node in a temporary directory, as processes of their own, without a supervisor."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import aiohttp

from mesh.config import Settings, load
from mesh.discovery.http_address import META
from mesh.discovery.record import Instance
from mesh.node.connect import connect
from mesh.node.node import Node
from tests.patience import PATIENCE_S, until

#: Serves HTTP, and misbehaves as files in its directory ask for. It dies at once on SIGTERM, as most simple servers do.
APP = """\
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import time

if os.path.exists("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.path.exists("forks"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open("child.pid", "w").write(str(child.pid))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status, body = 200, self.path.encode()
        if self.path == "/healthz":
            while os.path.exists("hang"):
                time.sleep(0.02)
            status = 503 if os.path.exists("sick") else 200
        elif self.path == "/env":
            body = json.dumps(dict(os.environ)).encode()
        elif self.path == "/pid":
            body = str(os.getpid()).encode()
        elif self.path.startswith("/slow/"):
            open("slow", "w").close()
            time.sleep(float(self.path.rpartition("/")[2]))
        elif self.path == "/die":
            os._exit(7)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        print("served", self.path, flush=True)


class Unix(http.server.ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self):
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0

    def get_request(self):
        connection, _ = self.socket.accept()
        return connection, ("unix", 0)


if "SOCKET" in os.environ:
    server = Unix(os.environ["SOCKET"], Handler)
else:
    server = http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler)
server.daemon_threads = True
server.serve_forever()
"""

SETTINGS = """\
[worker]
stop_timeout = "6s"

[services.shop]
command = ["{python}", "app.py"]
health = "/healthz"
health_every = "100ms"
health_timeout = "500ms"
health_failures = 0
{more}
"""


class Copy:
    """One running `mesh program`.

    Attributes:
        log: what it and its program have written.
    """

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def code(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 20.0)


class Site:
    """The directory, the hub, and a node that sees the registry."""

    node: Node
    url: str

    def __init__(self) -> None:
        # Not tmp_path: a unix socket's path has room for 107 characters.
        self.root = Path(tempfile.mkdtemp(prefix="mesh-")).resolve()
        (self.root / "app.py").write_text(APP)
        self.write()
        self._started: list[asyncio.subprocess.Process] = []

    def write(self, more: str = "") -> None:
        (self.root / "mesh.toml").write_text(SETTINGS.format(python=sys.executable, more=more))

    def configure(self, service: str, more: str = "") -> None:
        """Write mesh.toml with this [services.shop], and with a gateway."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        text = f'[gateway]\nport = {port}\n[worker]\nstop_timeout = "6s"\n[services.shop]\n{service}\n{more}'
        (self.root / "mesh.toml").write_text(text)

    @property
    def settings(self) -> Settings:
        return load(self.root / "mesh.toml", env={})

    async def __aenter__(self) -> Site:
        await self.run("hub", "hub.log")
        await until(lambda: (self.root / "run/hub.sock").exists(), "the hub listens")
        self._connecting = connect(self.settings, wait_s=10.0)
        self.node = await self._connecting.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connecting.__aexit__(kind, value, trace)
        await self.clear()

    async def clear(self) -> None:
        """End what still runs, and remove the directory."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
            await process.wait()
        shutil.rmtree(self.root)

    async def run(
        self, verb: str, log: str, *words: str, more: Mapping[str, str] = MappingProxyType({})
    ) -> asyncio.subprocess.Process:
        """Start a command of mesh, which is ended with the site.

        Args:
            more: further variables of its environment.
        """
        env = {name: text for name, text in os.environ.items() if not name.startswith(("MESH_", "SUPERVISOR_"))}
        env |= more
        with (self.root / log).open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "mesh.cli.main", verb, *words),
                cwd=self.root,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self._started.append(process)
        return process

    async def start(self, *words: str, name: str = "shop", more: Mapping[str, str] = MappingProxyType({})) -> Copy:
        """Start `mesh program NAME`."""
        log = f"{name}_{len(self._started)}.log"
        return Copy(await self.run("program", log, name, *words, more=more), self.root / log)

    async def start_gateway(self) -> Copy:
        """Start `mesh gateway`; returns when it answers."""
        gateway = Copy(await self.run("gateway", "gateway.log"), self.root / "gateway.log")
        await self._answered("/livez", (200,))
        return gateway

    async def routed(self, path: str) -> None:
        """Return when a program answers this path through the gateway."""
        await self._answered(path, (200,))

    async def _answered(self, path: str, statuses: Collection[int]) -> None:
        async with aiohttp.ClientSession() as session:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        async with session.get(self.url + path) as answer:
                            if answer.status in statuses:
                                return
                    except aiohttp.ClientConnectionError:
                        pass
                    await asyncio.sleep(0.02)

    def touch(self, name: str) -> Path:
        path = self.root / name
        path.touch()
        return path

    def instances(self, name: str = "shop") -> tuple[Instance, ...]:
        return self.node.table.instances(name)

    async def ready(self, count: int = 1, name: str = "shop") -> tuple[Instance, ...]:
        await until(lambda: len(self.instances(name)) == count, f"{count} instances of {name}")
        return self.instances(name)

    async def get(self, instance: Instance, path: str) -> str:
        """The body of an answer of this instance's program."""
        return await asyncio.to_thread(_get, instance.meta[META] + path)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        await until(condition, what)


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=15) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as exc:
        exc.close()
        return str(exc.code)

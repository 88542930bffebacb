"""A project in a temporary directory, run by a real supervisord; only the `mesh` command in it is a stand-in."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.errors import MeshError
from mesh.supervision import family, layout
from mesh.supervision.down import take_down

# It does what supervision looks at: it lives, it registers (a file stands for the registry), it answers HTTP on fd 0.
MESH = """\
#!{python}
import json, os, pathlib, signal, socket, sys, time
run = pathlib.Path("run")
role = sys.argv[1]
pid = os.getpid()
if (run / f"{{os.environ['SUPERVISOR_PROCESS_NAME']}}.broken").exists():
    print("Traceback: the service is broken", flush=True)
    sys.exit(1)
if role != "hub":
    (run / f"{{pid}}.json").write_text(json.dumps({{"id": f"x-{{pid}}", "pid": pid, "host": "here"}}))
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"run/{{pid}}.sock")
listener.listen()
def leave(*_):
    for name in (f"{{pid}}.sock", f"{{pid}}.json"):
        (run / name).unlink(missing_ok=True)
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
if role != "gateway":
    while True:
        time.sleep(60)
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        records = []
        for path in run.glob("*.json"):
            record = json.loads(path.read_text() or "{{}}")
            if record and os.path.exists(f"/proc/{{record['pid']}}"):
                records.append(record)
        service = {{"name": "greeting", "instances": records}}
        body = json.dumps({{"gateway": {{"host": "here"}}, "services": [service]}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
server = HTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=0)
server.serve_forever()
"""

CONF = """\
[unix_http_server]
file=%(here)s/run/supervisor.sock
[supervisorctl]
serverurl=unix://%(here)s/run/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisord]
directory=%(here)s
pidfile=%(here)s/run/supervisord.pid
logfile=%(here)s/logs/supervisord.log
childlogdir=%(here)s/logs
environment=PATH="%(here)s/.venv/bin:%(ENV_PATH)s"
"""

PROGRAM = """
[{kind}:{name}]
command={command}
{more}
numprocs={copies}
process_name={process}
priority={priority}
directory=%(here)s
autorestart=true
startsecs=1
startretries=100
stopwaitsecs=10
killasgroup=true
redirect_stderr=true
stdout_logfile=%(here)s/logs/{name}_%(process_num)d.log
"""


class Project:
    """The directory, and what a test needs to know of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = root / "run"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (root / ".venv/bin").mkdir(parents=True)
        mesh = root / ".venv/bin/mesh"
        mesh.write_text(MESH.format(python=sys.executable))
        mesh.chmod(0o755)
        (root / "mesh.toml").write_text("")
        programs = [
            ("program", "hub", "mesh hub", "", 1, 10),
            ("program", "greeting", "mesh run services.greeting:Greeting", "", 2, 20),
            ("fcgi-program", "gateway", "mesh gateway --fd 0", f"socket=tcp://127.0.0.1:{self.port}", 2, 90),
        ]
        text = CONF + "".join(
            PROGRAM.format(
                kind=kind,
                name=name,
                command=command,
                more=more,
                copies=copies,
                priority=priority,
                process="%(program_name)s" + ("_%(process_num)d" if copies > 1 else ""),
            )
            for kind, name, command, more, copies, priority in programs
        )
        (root / "supervisord.conf").write_text(text)

    @property
    def layout(self) -> layout.Layout:
        return layout.read(self.root / "supervisord.conf")

    def members(self) -> list[family.Member]:
        return family.members(self.layout.server_url)

    def supervisord(self) -> int:
        return int((self.run / "supervisord.pid").read_text())

    def break_process(self, name: str) -> None:
        self.run.mkdir(exist_ok=True)
        (self.run / f"{name}.broken").write_text("")


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project that is taken down again whatever the test did to it."""
    # Not tmp_path: a unix socket's path has room for 107 characters.
    root = Path(tempfile.mkdtemp(prefix="mesh-"))
    monkeypatch.chdir(root)
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        monkeypatch.delenv(name)
    made = Project(root)
    try:
        yield made
    finally:
        (root / "supervisord.conf").exists() and _end(made)
        shutil.rmtree(root)


def _end(project: Project) -> None:
    try:
        take_down(project.layout, project.run)
    except MeshError:
        for member in project.members():
            os.kill(member.pid, signal.SIGKILL)

"""A small project that the playbooks deploy, and a client that asks it all the while."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mesh.supervisord import process_tree

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

SETTINGS = """\
[gateway]
replicas = 1

[services.greeting]
class = "services.greeting:Greeting"
replicas = 1
"""


#: Before an indented line of code that is to fail when a worker starts, but not when the release is tried beforehand.
NOT_AT_THE_TRY = ("import sys", "if '--check' not in sys.argv:")


class Project:
    """A copy of this project that tests may change and deploy, with one service.

    Attributes:
        root: where it is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        forget = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "mesh", root / "mesh", ignore=forget)
        shutil.copytree(ROOT / "playbooks", root / "playbooks", ignore=forget)  # the wheel contains them
        shutil.copytree(ROOT / "services/greeting", root / "services/greeting", ignore=forget)
        for name in ("pyproject.toml", "supervisord.conf", "README.md", "LICENSE", "services/__init__.py"):
            shutil.copy(ROOT / name, root / name)
        self.settings("")
        self._service = root / "services/greeting/service.py"
        self._working = self._service.read_text()

    def says(self, word: str) -> None:
        """Another release of the service: it says this instead of Hello."""
        self._service.write_text(re.sub(r'return f"\w+, ', f'return f"{word}, ', self._working))

    def also(self, *lines: str) -> None:
        """Every release from now on: the service's class, the last thing in its module, ends with these lines."""
        self._working = "\n".join([self._working, *lines, ""])
        self._service.write_text(self._working)

    def settings(self, more: str) -> None:
        """Another release by its mesh.toml: it ends with these lines."""
        (self.root / "mesh.toml").write_text(SETTINGS + more)

    def fails(self, *lines: str) -> None:
        """A bad release: the service's module ends with these lines."""
        self._service.write_text("\n".join([self._working, *lines, ""]))


def ansible_missing() -> str:
    """What is to be installed before a playbook can be run; "" when nothing."""
    if importlib.util.find_spec("ansible") is None or not (BIN / "ansible-playbook").exists():
        return f"ansible is missing: {sys.executable} -m pip install ansible-core"
    return ""


def bundle(project: Project, build: Path) -> None:
    """Build what a deployment of it to hosts like this one needs, which needs a package index once."""
    words = [sys.executable, "playbooks/roles/bundle/files/bundle.py", "--project", str(project.root)]
    words += ["--build", str(build), "--code", "services", "--machine", platform.machine()]
    words += ["--python", f"{sys.version_info.major}.{sys.version_info.minor}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, done.stderr


def environment(ansible: Path) -> dict[str, str]:
    """What ansible-playbook is run with: the project's own settings, and nothing in the home directory."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "ANSIBLE_"))}
    # Connections, too: hosts of two networks have the same addresses.
    places = {"HOME": "", "LOCAL_TEMP": "tmp", "SSH_CONTROL_PATH_DIR": "cp"}
    return {
        **clean,
        **{f"ANSIBLE_{key}": str(ansible / name) for key, name in places.items()},
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }


class Deployment:
    """A project, and a prefix of this machine that it is deployed to."""

    def __init__(self, root: Path, build: Path) -> None:
        self.project = Project(root / "project")
        self.prefix = root / "host"
        self._ansible = root / "ansible"
        self._build = build
        self.port = free_port()

    def play(self, name: str, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run a playbook against inventory/local, but into this prefix; it may fail."""
        running = self.begin(name, *options, **variables)
        try:
            out, err = running.communicate(timeout=240)
        except BaseException:
            running.kill()
            raise
        return subprocess.CompletedProcess(running.args, running.returncode, out, err)

    def begin(self, name: str, *options: str, **variables: Any) -> subprocess.Popen[str]:
        """Start a playbook as `play` does, and let it run."""
        told = {
            "mesh_project": str(self.project.root),
            "mesh_prefix": str(self.prefix),
            "mesh_build": str(self._build),
            "mesh_backups": str(self.prefix.parent / "backups"),
            "mesh_extras": "",
            "mesh_settle_s": 0.2,
            "mesh_releases_kept": 2,
            "mesh_settings": {"gateway": {"port": self.port}},
            **variables,
        }
        words = [f"playbooks/{name}.yml", "-i", "inventory/local", "-e", json.dumps(told), *options]
        return subprocess.Popen(
            [str(BIN / "ansible-playbook"), *words],
            cwd=ROOT,
            env=environment(self._ansible) | {"ANSIBLE_REMOTE_TMP": str(self._ansible / "remote")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)

    def mesh(self, *words: str) -> str:
        """What a command of the current release prints."""
        done = subprocess.run([str(self.prefix / "bin/mesh"), *words], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def current(self) -> str:
        """The name of the release that runs, "" without one."""
        link = self.prefix / "current"
        return link.readlink().name if link.is_symlink() else ""

    @property
    def running(self) -> set[str]:
        """The releases that processes run from."""
        places = (process_tree.directory(each.pid) for each in self.processes)
        return {place.name for place in places if place is not None}

    def lose_power(self) -> None:
        """End all that has to do with this host at once, also what deploys to it."""
        while left := [pid for pid in _pids() if pid != os.getpid() and _touches(pid, str(self.prefix))]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    @property
    def releases(self) -> set[str]:
        return {path.name for path in (self.prefix / "releases").iterdir()}

    @property
    def processes(self) -> list[process_tree.Member]:
        """All that supervisord of this prefix has started."""
        return process_tree.members(f"unix://{self.prefix}/run/supervisor.sock")

    @contextmanager
    def asked(self) -> Iterator[list[str]]:
        """Requests, one after the other, all the while; what was not answered is in the list."""
        failed: list[str] = []
        over = threading.Event()
        count = 0

        def ask() -> None:
            nonlocal count
            while not over.wait(0.01):
                count += 1
                try:
                    self.get("/hello/ujun")
                except (OSError, ValueError) as exc:
                    failed.append(repr(exc))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield failed
        finally:
            over.set()
            thread.join()
        assert count > 20

    def secret(self, value: str) -> dict[str, Any]:
        """Variables for a release whose service answers /token with this secret; `answers_token` comes before."""
        return {"mesh_secrets": {"TOKEN": value}}

    def answers_token(self) -> None:
        """Every release from now on has the route."""
        self.project.settings(f'env_file = "{self.prefix}/secrets.env"\n')
        self.project.also(
            *("", '    @http.get("/token")', "    @rpc", "    async def token(self) -> str:"),
            *("        import os", "", '        return os.environ.get("TOKEN", "")'),
        )

    def end(self) -> None:
        """Make sure that nothing runs any more, also after a test that failed half-way."""
        left = self.processes
        pid = process_tree.recorded(self.prefix / "run/supervisord.pid")
        for each in [pid, *(member.pid for member in left)]:
            if each and process_tree.alive(each):
                os.kill(each, signal.SIGKILL)
        until = time.monotonic() + 5
        while self.processes and time.monotonic() < until:
            time.sleep(0.05)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _touches(pid: int, path: str) -> bool:
    """Whether a living process names this path or works below it, or has a file open there."""
    place = Path(f"/proc/{pid}")
    try:
        if (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        named = (place / "cmdline").read_text(errors="replace") + (place / "environ").read_text(errors="replace")
        links = [place / "cwd", *(place / "fd").iterdir()]
    except OSError:
        return False
    for link in links:
        with suppress(OSError):
            named += f"\0{os.readlink(link)}"
    return path in named


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def recap(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The counts in the last lines: ok, changed, failed, …; empty when it did not come so far."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("here ")]
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", lines[-1])} if lines else {}

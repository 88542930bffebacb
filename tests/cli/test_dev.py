"""`mesh dev`: a whole mesh in one process, restarted when a file is saved."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_project import command, environment, free_port

from mesh.cli import exits
from mesh.cli.commands.dev import DATA, LOCK

SERVICE = """\
import os

import mesh
from mesh import http, rpc, task


class Hello(mesh.Service):
    @http.get("/hello/{name}")
    @rpc(idempotent=True)
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"

    @http.get("/slow")
    @rpc
    async def slow(self) -> str:
        import asyncio

        open("slow.began", "w").close()
        await asyncio.sleep(0.5)
        return "Hello, at last!"

    @http.get("/pid")
    @rpc
    async def pid(self) -> int:
        return os.getpid()

    @http.post("/notes/{text}")
    @rpc
    async def note(self, text: str) -> None:
        await self.defer(self.keep, text)

    @task
    async def keep(self, text: str) -> None:
        await self.state("notes").set(text, 1)

    @http.get("/notes/{text}")
    @rpc
    async def kept(self, text: str) -> bool:
        value, _ = await self.state("notes").get(text)
        return value is not None
"""

WITHIN_S = 30.0


def until(check: Callable[[], object]) -> None:
    end = time.monotonic() + WITHIN_S
    while not check():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


class Dev:
    """A project with one file, and a `mesh dev` that runs it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "hello.py"
        self.file.write_text(SERVICE)
        self.port = free_port()
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, *words: str, files: tuple[str, ...] = ("hello.py",)) -> None:
        """Start, without waiting."""
        with (self.root / "out").open("ab") as out, (self.root / "log").open("ab") as log:
            self.child = subprocess.Popen(
                command("dev", *files, "--json", *words),
                cwd=self.root,
                env=environment({"MESH_GATEWAY_PORT": str(self.port)}),
                stdout=out,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def ready(self, times: int = 1) -> dict[str, Any]:
        """Wait until it has reported for the n-th time that everything runs; the report."""
        until(lambda: len(self._reports()) >= times or self._ended())
        reports = self._reports()
        assert len(reports) >= times, self.log()
        return dict(json.loads(reports[times - 1]))

    def _reports(self) -> list[str]:
        return (self.root / "out").read_text().splitlines()

    def _ended(self) -> bool:
        return self.child is None or self.child.poll() is not None

    def log(self) -> str:
        return (self.root / "log").read_text()

    def get(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        with urllib.request.urlopen(request, timeout=WITHIN_S) as answer:
            return json.load(answer)

    def edit(self, before: str, after: str) -> None:
        text = self.file.read_text()
        assert before in text
        self.file.write_text(text.replace(before, after))

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        assert self.child is not None
        self.child.send_signal(number)
        return self.child.wait(WITHIN_S)

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
def dev() -> Iterator[Dev]:
    with tempfile.TemporaryDirectory(prefix="mesh-") as root:
        made = Dev(Path(root))
        try:
            yield made
        finally:
            if made.child is not None and made.child.poll() is None:
                made.child.terminate()
                made.child.wait(WITHIN_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_and_ends_cleanly(dev: Dev, number: signal.Signals):
    """HTTP, calls, tasks and state, in one process; after a signal nothing is left of it."""
    dev.start()
    told = dev.ready()
    assert told["http"] == f"http://127.0.0.1:{dev.port}"
    assert told["services"] == ["hello"]
    assert {"verb": "GET", "path": "/hello/{name}", "method": "hello.hello"} in told["routes"]
    assert dev.get("/hello/you") == "Hello, you!"
    assert dev.get("/pid") == told["pid"]
    called = subprocess.run(
        command("call", "hello.hello", "x"), cwd=dev.root, env=environment(), capture_output=True, check=True
    )
    assert called.stdout == b"Hello, x!\n"
    dev.get("/notes/milk", "POST")
    until(lambda: dev.get("/notes/milk"))
    assert dev.stop(number) == exits.OK
    assert not dev.listens()
    assert not _runs(told["pid"])
    assert sorted(path.name for path in dev.root.iterdir() if path.name != "__pycache__") == ["hello.py", "log", "out"]


def test_a_saved_file_is_used_at_once_and_no_request_is_lost(dev: Dev):
    """Requests meanwhile wait; one that runs is answered by the old code; tasks and state stay."""
    dev.start()
    first = dev.ready()
    dev.get("/notes/milk", "POST")
    until(lambda: dev.get("/notes/milk"))
    slow = subprocess.Popen(["curl", "-s", f"http://127.0.0.1:{dev.port}/slow"], stdout=subprocess.PIPE)
    until((dev.root / "slow.began").exists)
    dev.edit("Hello,", "Howdy,")
    until(lambda: dev.get("/hello/you") == "Howdy, you!")
    assert slow.communicate(timeout=WITHIN_S)[0] == b'"Hello, at last!"'
    second = dev.ready(2)
    assert second["pid"] != first["pid"]
    assert not _runs(first["pid"])
    assert dev.get("/notes/milk")
    assert dev.stop() == exits.OK


@pytest.mark.parametrize(
    ("broken", "shown"),
    [("x = (\n", "SyntaxError"), ("import no_such_module\n", "ModuleNotFoundError"), ("1 / 0\n", "ZeroDivisionError")],
)
def test_broken_code_is_reported_and_waited_for(dev: Dev, broken: str, shown: str):
    """The place on the terminal, 503 over HTTP without the reason, and the next save starts it again."""
    dev.start()
    dev.ready()
    dev.edit("import os\n", f"import os\n{broken}")
    until(lambda: f"mesh: hello.py:2: {shown}" in dev.log())
    with pytest.raises(urllib.error.HTTPError) as caught:
        until(lambda: dev.get("/hello/you") is None)
    with caught.value:
        problem = json.load(caught.value)
    assert (caught.value.code, problem["code"], caught.value.headers["Retry-After"]) == (503, "unavailable", "1")
    assert shown not in json.dumps(problem)
    dev.edit(broken, "")
    dev.ready(2)
    assert dev.get("/hello/you") == "Hello, you!"
    assert dev.stop() == exits.OK


def test_code_that_is_broken_from_the_beginning_is_waited_for(dev: Dev):
    """A service that raises in `started`, too."""
    started = "    async def started(self) -> None:\n        raise RuntimeError('no till')\n\n"
    dev.edit("class Hello(mesh.Service):\n", f"class Hello(mesh.Service):\n{started}")
    dev.start()
    until(lambda: "RuntimeError: no till" in dev.log() and "waiting for a change" in dev.log())
    dev.edit(started, "")
    dev.ready()
    assert dev.get("/hello/you") == "Hello, you!"
    assert dev.stop() == exits.OK


def test_an_ended_child_is_no_reason_to_stay_when_nothing_is_watched(dev: Dev):
    dev.file.write_text("1 / 0\n")
    dev.start("--no-reload")
    assert dev.child is not None
    assert dev.child.wait(WITHIN_S) == exits.FAILED
    assert not (dev.root / "run").exists()


def test_a_port_in_use_is_an_error_at_once(dev: Dev):
    with socket.socket() as other:
        other.bind(("127.0.0.1", dev.port))
        other.listen()
        dev.start()
        assert dev.child is not None
        assert dev.child.wait(WITHIN_S) == exits.FAILED
    assert json.loads(dev.log())["error"]["code"] == "address_in_use"


def test_another_mesh_of_the_project_is_an_error_at_once(dev: Dev):
    """A second `mesh dev`, or a hub: neither loses its data or its sockets."""
    dev.start()
    dev.ready()
    again = subprocess.run(
        command("dev", "hello.py", "--json", "--port", str(free_port())),
        cwd=dev.root, env=environment(), capture_output=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert again.returncode == exits.FAILED
    assert LOCK in json.loads(again.stderr)["error"]["message"]
    assert dev.get("/hello/you") == "Hello, you!"
    assert dev.stop() == exits.OK
    with (dev.root / "hub.log").open("wb") as log:
        hub = subprocess.Popen(command("hub"), cwd=dev.root, env=environment(), stderr=log)
    try:
        until(lambda: b"ready" in (dev.root / "hub.log").read_bytes())
        dev.start()
        assert dev.child is not None
        assert dev.child.wait(WITHIN_S) == exits.FAILED
        assert '"code": "address_in_use"' in dev.log()
    finally:
        hub.terminate()
        assert hub.wait(WITHIN_S) == 0


def test_data_is_kept_on_request_only(dev: Dev):
    for words, expected in ((("--keep",), False), (("--keep",), True), ((), False)):
        dev.start(*words)
        dev.ready()
        assert dev.get("/notes/milk") is expected
        dev.get("/notes/milk", "POST")
        until(lambda: dev.get("/notes/milk"))
        assert dev.stop() == exits.OK
        assert (dev.root / "run" / DATA).exists() is bool(words)
        (dev.root / "out").unlink()


def test_the_child_does_not_outlive_a_killed_parent(dev: Dev):
    dev.start()
    pid = dev.ready()["pid"]
    assert dev.stop(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not _runs(pid))
    assert not dev.listens()


def test_without_words_everything_of_mesh_toml_runs(dev: Dev):
    """Each section under its own name, with its values and variables; two that need each other."""
    (dev.root / "mesh.toml").write_text(
        '[services.hello]\nclass = "hello.py"\nreplicas = 3\n[services.other]\nclass = "other.py"\n'
        'environment = { COLOUR = "blue" }\nconfig = { size = 7 }\n'
    )
    (dev.root / "other.py").write_text(
        "import os\nimport mesh\nfrom mesh import http, rpc\n\n\nclass Shop(mesh.Service):\n"
        '    needs = ["hello"]\n\n'
        '    @http.get("/other")\n    @rpc\n    async def ask(self) -> list[str]:\n'
        '        return [os.environ["COLOUR"], str(self.config["size"]), await self.rpc.hello.hello("you")]\n'
    )
    dev.start(files=())
    assert dev.ready()["services"] == ["hello", "other"]
    assert dev.get("/other") == ["blue", "7", "Hello, you!"]
    assert dev.stop() == exits.OK


@pytest.mark.parametrize("words", [(), ("nowhere.py",), ("nowhere.py:Hello",)])
def test_what_cannot_run_is_an_error_at_once(dev: Dev, words: tuple[str, ...]):
    done = subprocess.run(
        command("dev", *words), cwd=dev.root, env=environment(), capture_output=True, timeout=WITHIN_S, check=False
    )
    assert done.returncode == (exits.FAILED if words else exits.USAGE)
    assert b"Traceback" not in done.stderr
    assert not (dev.root / "run").exists()


@pytest.mark.parametrize(("public", "shown"), [("", False), ('public = ["/docs"]', True)])
def test_the_link_to_the_documentation_is_shown_where_it_is_served(dev: Dev, public: str, shown: bool):
    (dev.root / "mesh.toml").write_text(f'[gateway]\nhost = "0.0.0.0"\n{public}\n')
    dev.start()
    told = dev.ready()
    assert told["docs"] == (f"{told['http']}/docs" if shown else None)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

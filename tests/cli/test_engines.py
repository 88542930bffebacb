"""An engine from a package that mesh knows nothing of, in real processes; and `mesh engines`."""

from __future__ import annotations

import json
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_project import command, environment

from mesh.engines.capabilities import CAPABILITIES, KEYS
from tests.documented_engine import PROJECT, install

COUNTER = '''
import mesh
from mesh import rpc, task


class Counter(mesh.Service):
    """Counts in state."""

    name = "counter"

    @rpc
    async def count(self) -> int:
        return await self.state("numbers").add("calls")


class Payer(mesh.Service):
    name = "payer"
    uses = ("state", "atomic")

    @task
    async def pay(self) -> None: ...
'''

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project() -> Iterator[Path]:
    # A unix socket's path has room for 107 characters.
    with tempfile.TemporaryDirectory(prefix="mesh-engines-") as made:
        root = Path(made)
        (root / "site").mkdir()
        install(root / "site")
        (root / "counter.py").write_text(COUNTER)
        (root / "mesh.toml").write_text(PROJECT)
        yield root


def env(root: Path) -> dict[str, str]:
    return environment({"PYTHONPATH": str(root / "site")})


@pytest.fixture
def run(project: Path) -> Run:
    """A command line in the project, with the package installed."""

    def run(*words: str, packages: bool = True) -> subprocess.CompletedProcess[str]:
        variables = env(project) if packages else environment()
        return subprocess.run(command(*words), cwd=project, env=variables, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def start(project: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> subprocess.Popen[bytes]:
        with (project / "log").open("ab") as log:
            process = subprocess.Popen(
                command(*words), cwd=project, env=env(project), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_package_brings_an_engine_that_a_worker_uses(project: Path, run: Run, start) -> None:
    """What it confirmed is there after kill -9; no store runs, and no file of mesh knows of it."""
    start("hub")
    worker = start("run", "counter:Counter")
    assert [run("call", "counter.count", "--json").stdout for _ in range(2)] == ["1\n", "2\n"]
    worker.kill()
    worker.wait()
    start("run", "counter:Counter")
    done = run("call", "counter.count", "--json")
    assert (done.stdout, done.returncode) == ("3\n", 0), (done.stderr, (project / "log").read_text())
    assert (project / "shelf.bin").is_file()
    assert json.loads(run("state", "get", "numbers", "calls", "--json").stdout)["value"] == 3


def test_a_worker_that_declares_more_does_not_start(run: Run) -> None:
    """With the service, the capability and the engines that offer it."""
    done = run("run", "counter:Payer", "--json")
    assert done.returncode != 0
    told = json.loads(done.stderr.splitlines()[-1])["error"]
    assert told["code"] == "not_offered"
    assert (told["details"]["service"], told["details"]["capability"]) == ("payer", "atomic")
    assert told["details"]["engines"] == {"tasks": "sqlite", "state": "shelf"}


def test_engines_lists_what_there_is(project: Path, run: Run) -> None:
    """What each offers, what it serves, and where it is from."""
    rows = {row["name"]: row for row in json.loads(run("engines", "--json").stdout)}
    assert set(rows) == {"sqlite", "memory", "shelf"}
    shelf = rows["shelf"]
    assert (shelf["offers"], shelf["together"], shelf["serves"]) == (["state"], [], ["state"])
    assert (shelf["from"], shelf["reference"]) == ("mesh-shelf 0.3", "shelf_engine:spec")
    assert (shelf["settings"], shelf["about"], shelf["error"]) == ("engines.shelf", "state in one file", "")
    assert rows["sqlite"]["offers"] == list(CAPABILITIES)
    assert rows["sqlite"]["serves"] == [key for key in KEYS if key != "state"]
    assert (rows["memory"]["from"], rows["memory"]["serves"]) == ("built in", [])
    text = run("engines")
    assert text.returncode == 0
    assert [line.split()[0] for line in text.stdout.splitlines()[2:]] == ["sqlite", "memory", "shelf"]
    shown = {row["key"]: row for row in json.loads(run("config", "engines", "--json").stdout)}
    assert shown["engines.state"]["value"] == "shelf"
    assert shown["engines.shelf.file"]["value"] == str(project / "shelf.bin")


def test_engines_tells_of_those_that_are_broken(project: Path, run: Run) -> None:
    """One that nobody chose is a line; one that is chosen, and one that is not there, a failure."""
    (project / "site" / "shelf_engine.py").write_text("import no_such_client\n")
    done = run("engines", "--json")
    assert done.returncode == 1
    assert "mesh-shelf 0.3" in {row["name"]: row for row in json.loads(done.stdout)}["shelf"]["error"]
    assert done.stderr.startswith("mesh.toml:2: engines.state: ")
    missing = run("engines", packages=False)
    assert missing.returncode == 1
    assert "engines.state" in missing.stderr
    (project / "mesh.toml").write_text("")
    assert run("engines", "--json").returncode == 0
    assert run("config", "engines").returncode == 0


def test_a_project_has_an_engine_of_its_own(project: Path, run: Run, start) -> None:
    """By module and attribute, without any package."""
    (project / "site" / "shelf_engine.py").rename(project / "own_engine.py")
    (project / "mesh.toml").write_text(
        textwrap.dedent("""
            [engines]
            state = "own_engine:spec"
            [engines.shelf]
            file = "own.bin"
        """)
    )
    start("hub")
    start("run", "counter:Counter")
    assert run("call", "counter.count", "--json").stdout == "1\n"
    assert (project / "own.bin").is_file()
    rows = {row["name"]: row for row in json.loads(run("engines", "--json").stdout)}
    assert (rows["own_engine:spec"]["from"], rows["own_engine:spec"]["serves"]) == ("project", ["state"])

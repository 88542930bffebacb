"""Whose exception it was that ended `mesh run`."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
from cli_project import Mesh

from mesh.cli import exits
from mesh.cli.main import COMMANDS, run

STARTED = """\
import mesh
class Broken(mesh.Service):
    async def started(self):
        int("x")
"""
MADE = """\
import json
import mesh
class Broken(mesh.Service):
    def __init__(self):
        super().__init__()
        json.loads("{")
"""


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (STARTED, "mesh: broken.py:4, in started: ValueError: "),
        (MADE, "mesh: broken.py:6, in __init__: JSONDecodeError: "),
        ("import mesh\nimport nowhere.to\n", "mesh: broken.py:2: ModuleNotFoundError: No module named 'nowhere'"),
        ("import mesh\nclass Broken(mesh.Service)\n", "mesh: broken.py:2: SyntaxError: expected ':'"),
        ("import mesh\nraise RuntimeError\n", "mesh: broken.py:2: RuntimeError"),
    ],
)
def test_what_is_wrong_with_a_service_is_said_of_the_service(mesh: Mesh, tmp_path: Path, source: str, says: str):
    """Its file and line, in the last line; Python's traceback before it, without the way through mesh."""
    (tmp_path / "broken.py").write_text(textwrap.dedent(source))
    (tmp_path / "mesh.toml").write_text("")
    done = mesh("run", "broken.py", cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == exits.FAILED
    assert lines[-1].startswith(says), done.stderr
    assert "bug in mesh" not in done.stderr
    assert any("broken.py" in line and "line" in line for line in lines[:-1])
    assert "worker.py" not in done.stderr
    assert "importlib" not in done.stderr


def test_what_nobody_foresaw_is_a_bug_of_mesh_and_shows_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """No service's code was on the way."""
    (tmp_path / "mesh.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(COMMANDS, "config", ("nowhere", ""))
    assert run(["config"]) == exits.BUG
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("mesh: ModuleNotFoundError: No module named 'mesh.cli.commands.nowhere'; ")
    assert lines[0].strip() == "Traceback (most recent call last):"


def test_a_service_that_is_installed_is_a_service(mesh: Mesh, tmp_path: Path):
    """Code of services may stand among the libraries, where nobody's own code calls it."""
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "shop.py").write_text("import mesh\nraise KeyError('x')\n")
    (tmp_path / "mesh.toml").write_text("")
    done = mesh("run", "shop", cwd=tmp_path, env={"PYTHONPATH": str(installed)})
    assert done.returncode == exits.FAILED
    assert done.stderr.splitlines()[-1] == "mesh: site-packages/shop.py:2: KeyError: 'x'"


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        # Python cannot even read what a worker is made of.
        (20, r"mesh: MemoryError: .* 20 MiB of \[services\.broken\] memory"),
        # libzmq would end the process.
        (40, r"mesh: .*40 MiB of \[services\.broken\] memory .* 32 MiB"),
        (100, r"mesh: broken\.py:5, in started: MemoryError: .* 100 MiB of \[services\.broken\]"),
    ],
)
def test_a_limit_of_memory_is_no_bug(mesh: Mesh, tmp_path: Path, memory: int, says: str):
    """Which limit it was is said, however far the worker came."""
    source = STARTED.replace('int("x")', "self.much = bytearray(200 * 2**20)").replace("class", "import os\nclass")
    (tmp_path / "broken.py").write_text(source)
    (tmp_path / "mesh.toml").write_text("")
    env = {"SUPERVISOR_GROUP_NAME": "broken"}
    done = mesh("run", "broken.py", "--limit", f"memory={memory * 2**20}", cwd=tmp_path, env=env)
    assert done.returncode == exits.FAILED, done.stderr
    assert re.match(says, done.stderr.splitlines()[-1])


def test_what_goes_wrong_under_a_limit_is_not_always_the_limits_fault(mesh: Mesh, tmp_path: Path):
    """A service's own words are believed."""
    (tmp_path / "broken.py").write_text(STARTED)
    (tmp_path / "mesh.toml").write_text("")
    done = mesh("run", "broken.py", "--limit", f"memory={2**30}", cwd=tmp_path)
    assert done.stderr.splitlines()[-1].startswith("mesh: broken.py:4, in started: ValueError: ")


def test_check_goes_as_far_as_a_worker_without_a_hub(mesh: Mesh, tmp_path: Path):
    """It imports, looks at limits, and leaves nothing behind."""
    (tmp_path / "broken.py").write_text(STARTED)
    (tmp_path / "mesh.toml").write_text("[wrong")
    done = mesh("run", "--check", "broken.py", "--limit", f"memory={2**30}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (exits.OK, "")
    assert not (tmp_path / "run").exists()
    done = mesh("run", "--check", "broken:Nobody", cwd=tmp_path)
    assert done.returncode == exits.FAILED
    assert "'Nobody'" in done.stderr

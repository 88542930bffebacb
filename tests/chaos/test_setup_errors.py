"""Set-ups that cannot work say what is wrong and what to do, and leave nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import BIN, ROOT, Set, environment, project

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mesh-") as made:
        (Path(made) / "services").symlink_to(ROOT / "services")
        yield Path(made)


def fails(directory: Path, *words: str, **env: str) -> str:
    """What a command that must fail writes to stderr; it has no traceback in it."""
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=directory,
        env={**environment(), **env},
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode not in (0, None), done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_wrong_mesh_toml_names_the_line(directory: Path) -> None:
    """mesh.toml:2, the key, the value, and what is allowed."""
    (directory / "mesh.toml").write_text('[gateway]\nport = "80a"\n')
    said = fails(directory, "mesh", "gateway")
    assert "mesh.toml:2" in said
    assert "gateway.port" in said
    assert "80a" in said
    assert "65535" in said


def test_a_taken_port_is_named(directory: Path) -> None:
    """The gateway that finds its port taken says which, and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = fails(directory, "mesh", "gateway", MESH_GATEWAY_PORT=str(port))
    assert str(port) in said


def test_a_path_that_is_too_long_is_named(directory: Path) -> None:
    """An ipc path above 107 bytes names mesh.run_dir as the mend."""
    said = fails(directory, "mesh", "run", "services.greeting:Greeting", MESH_MESH_RUN_DIR=str(directory / ("x" * 120)))
    assert "107" in said
    assert "run_dir" in said


def test_a_second_hub_on_one_endpoint_is_refused(mesh_set: Set) -> None:
    """The live hub keeps its endpoint; the second one names the process that has it."""
    before = mesh_set.pids()
    done = mesh_set.run("mesh", "hub", check=False)
    assert done.returncode != 0
    assert str(before["hub"]) in done.stderr
    assert mesh_set.get("/hello/x") == "Hello, x!"
    assert mesh_set.pids() == before


def test_up_twice_and_down_twice(directory: Path) -> None:
    """A second `mesh up` says that it is up; `mesh down` leaves no process and no socket; a second one says so."""
    with project({"greeting": 1, "thumbnails": 0, "textstats": 0}) as small:
        again = small.run("mesh", "up")
        assert "already" in again.stdout + again.stderr
        pids = small.pids()
        small.run("mesh", "down")
        assert not list(small.root.glob("run/*.sock*"))
        assert all(not os.path.exists(f"/proc/{pid}") for pid in pids.values())
        down = small.run("mesh", "down")
        assert "nothing" in (down.stdout + down.stderr).lower()

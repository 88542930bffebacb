"""Workers as processes of their own: signals, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import mesh
from mesh.testing import Mesh, no_leaks
from tests.patience import until

HERE = Path(__file__).parent

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


@contextlib.asynccontextmanager
async def process(m: Mesh, tmp_path: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker as a process of its own, in the mesh of this test."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "worker_process.py"),
        str(m.settings.mesh.run_dir),
        str(tmp_path),
        *words,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(tmp_path: Path, number: signal.Signals):
    """The call in hand is answered, hooks run, and the process leaves with 0 and no socket behind."""
    async with Mesh(transport="ipc") as m, process(m, tmp_path) as child:
        await m.node.wait_for("worked", 20.0)
        call = m.call("worked.stay", timeout=20.0)
        await until((tmp_path / "staying").exists)
        child.send_signal(number)
        await until(lambda: not m.node.instances("worked"))
        assert not call.done()
        (tmp_path / "go").touch()
        assert await call == "stayed"
        assert await child.wait() == 0
        assert (tmp_path / "stopped").exists()
        left = [path.name for path in m.settings.mesh.run_dir.iterdir() if "worked" in path.name]
        assert left == []


async def test_a_second_signal_ends_it_at_once(tmp_path: Path):
    """Whatever is in hand; the caller is told."""
    async with Mesh(transport="ipc") as m, process(m, tmp_path) as child:
        await m.node.wait_for("worked", 20.0)
        call = m.call("worked.stay", timeout=20.0)
        await until((tmp_path / "staying").exists)
        child.terminate()
        await until(lambda: not m.node.instances("worked"))
        child.terminate()
        assert await child.wait() == 1
        with pytest.raises(mesh.LinkLost):
            await call
        assert not (tmp_path / "stopped").exists()


async def test_a_stop_timeout_ends_with_1(tmp_path: Path):
    """What was cut off is told, and so is whoever started the process."""
    async with Mesh(transport="ipc") as m, process(m, tmp_path, "worker.stop_timeout=200ms") as child:
        await m.node.wait_for("worked", 20.0)
        call = m.call("worked.stay", timeout=20.0)
        await until((tmp_path / "staying").exists)
        child.terminate()
        assert await child.wait() == 1
        with pytest.raises(mesh.MeshError) as caught:
            await call
        assert caught.value.code in ("draining", "link_lost")
        assert (tmp_path / "stopped").exists()


async def test_a_signal_while_it_waits_for_what_it_needs_ends_it(tmp_path: Path):
    """It has nothing in hand yet."""
    async with Mesh(transport="ipc") as m, process(m, tmp_path, "needs") as child:
        await until((tmp_path / "made").exists)
        await until(lambda: m.hubs[0].stats().watchers == 2)
        child.terminate()
        assert await child.wait() == 0


async def test_a_start_that_fails_says_why(tmp_path: Path):
    """With the author's own error, and an exit code that is not 0."""
    async with Mesh(transport="ipc") as m, process(m, tmp_path, "broken") as child:
        _, errors = await child.communicate()
        assert child.returncode == 1
        assert b"RuntimeError: no database" in errors

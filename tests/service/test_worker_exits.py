"""SystemExit and its kin fail the attempt that raised them; the worker and everything else in it go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from worker_exits import Exits, LeavesAtStart, Plain, Ticks
from worker_running import HERE, worker

import mesh
from mesh.testing import Mesh, no_leaks
from tests.patience import until

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    Exits.heard = []
    async with Mesh(Exits, settings={"worker.processes": 1, "worker.threads": 1}) as m:
        yield m


@pytest.mark.parametrize(
    ("method", "kind", "exit_code"),
    [
        ("leave", "SystemExit", 3),
        ("interrupt", "KeyboardInterrupt", None),
        ("odd", "OddError", None),
        ("leave_plainly", "SystemExit", "no more"),
        ("leave_thread", "SystemExit", 4),
        ("leave_process", "SystemExit", 5),
    ],
)
async def test_a_call_that_exits_fails_and_the_worker_lives(
    m: Mesh, method: str, kind: str, exit_code: int | str | None
):
    """Its caller gets the exception's name and exit code; the next call is answered."""
    with pytest.raises(mesh.RemoteError) as caught:
        await m.call(f"exits.{method}")
    assert caught.value.type_name == kind
    assert caught.value.code == "handler_error"
    assert caught.value.details.get("exit_code") == exit_code
    assert await m.call("exits.pid") == os.getpid()


async def test_a_stream_that_exits_fails(m: Mesh):
    """After the items that came before."""
    stream = m.stream("exits.items")
    assert await anext(stream) == 1
    with pytest.raises(mesh.RemoteError) as caught:
        await anext(stream)
    assert caught.value.details["exit_code"] == 7


async def test_a_task_that_exits_is_tried_as_often_as_declared(m: Mesh):
    """Twice, with one retry; then it is dead. A task beside it runs to its end at its first attempt."""
    beside = await m.node.defer("exits.neighbour", 0.2)
    job = await m.node.defer("exits.tried")
    plain = await m.node.defer("exits.tried_plainly")
    await m.idle()
    dead = {each.id: each for each in await m.dead()}
    assert dead.keys() == {job.id, plain.id}
    assert (dead[job.id].attempt, dead[plain.id].attempt) == (2, 1)
    assert "SystemExit: 9" in dead[job.id].error
    assert await beside.result() == "done"


async def test_handlers_of_events_that_exit_disturb_nobody(m: Mesh):
    """The other handler of the same event runs; the emitter gets the error; the worker lives."""
    with contextlib.suppress(mesh.MeshError):
        await m.emit("exits.one", "one")
    await m.emit("exits.every", "every")
    await until(lambda: sorted(Exits.heard) == ["every", "one", "one"])
    assert await m.call("exits.pid") == os.getpid()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, ValueError])
async def test_a_timer_that_exits_runs_again(kind: type[BaseException], monkeypatch: pytest.MonkeyPatch):
    """At its next time, whatever it raised."""
    monkeypatch.setattr(Ticks, "raises", kind)
    monkeypatch.setattr(Ticks, "ticks", 0)
    async with Mesh(Ticks) as m:
        await until(lambda: Ticks.ticks >= 3)
        assert await m.call("ticks.pid") == os.getpid()


async def test_exiting_in_started_is_a_start_that_failed():
    """With the name of the service and the exit code."""
    with pytest.raises(mesh.MeshError) as caught:
        async with Mesh(LeavesAtStart):
            pass
    assert caught.value.details == {"service": "leaves_at_start", "exception": "SystemExit", "exit_code": 13}


async def test_a_background_task_that_exits_ends_alone():
    """The process goes on, with the call in hand; so does one whose handler waits for such a task."""
    async with Mesh(transport="ipc") as m, worker(m, "worker_exits:Exits") as child:
        await m.node.wait_for("exits", 20.0)
        assert await m.call("exits.start_background") == child.pid
        assert await m.call("exits.background_over") == "SystemExit"
        with pytest.raises(mesh.RemoteError) as caught:
            await m.call("exits.gather")
        assert caught.value.details["exit_code"] == 6
        assert await m.call("exits.stop_loop") == child.pid
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_forked_child_is_a_process_like_others(loop: str, tmp_path: Path):
    """A signal for the child ends the child; the worker notices nothing, and answers as the same process."""
    if loop == "asyncio":
        (tmp_path / "uvloop.py").write_text("raise ImportError")
    async with Mesh(transport="ipc") as m, worker(m, "worker_exits:Forks", tmp_path) as child:
        await m.node.wait_for("forks", 20.0)
        assert await m.call("forks.process") == -signal.SIGTERM
        assert await m.call("forks.process_in_thread") == -signal.SIGTERM
        assert await m.call("forks.pool") == [1, 2]
        assert await m.call("forks.preexec") == -signal.SIGTERM
        assert await m.call("forks.fork", "signal") == -signal.SIGTERM
        assert await m.call("forks.fork", "exit") == 14
        # A loop of its own is another matter than the parent's.
        assert await m.call("forks.process_with_a_mesh", timeout=20.0) == 15
        # A child that returns into the loop would answer in its parent's name: it is ended instead.
        assert await m.call("forks.fork", "return") == 70
        assert await m.call("forks.fork", "await") == 70
        assert await m.call("forks.pid") == child.pid
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0


async def test_a_plain_def_of_any_kind_runs_in_a_thread():
    """The loop stays free."""
    Plain.threads = {}
    async with Mesh(Plain) as m:
        assert await m.call("plain.ask") == "called"
        assert await m.call("plain.route") == "routed"
        assert await (await m.node.defer("plain.count", 1)).result() == 2
        await m.emit("plain.one", "one")
        await m.emit("plain.every", "every")
        await m.emit("plain.durable", "durable", durable=True)
        kinds = {"call", "route", "task", "on", "on every", "on durable", "every"}
        await until(lambda: Plain.threads.keys() == kinds)
    assert [name for name in Plain.threads.values() if not name.startswith("mesh-offload")] == []


async def test_a_thread_that_never_ends_does_not_keep_the_process(tmp_path: Path):
    """Python would wait for it at its exit."""
    async with (
        Mesh(transport="ipc") as m,
        worker(m, "worker_exits:Plain", HERE, tmp_path, MESH_WORKER_STOP_TIMEOUT="200ms") as child,
    ):
        await m.node.wait_for("plain", 20.0)
        call = m.call("plain.stay", timeout=20.0)
        await until((tmp_path / "staying").exists)
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10.0):
            assert await child.wait() == 1
        with pytest.raises(mesh.MeshError):
            await call

"""Work in threads and processes: the loop goes on, limits stay true, and what dies is told."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from calls_services import Heavy, HeavyTasks

import mesh
from mesh.calls.offload import Offload
from mesh.calls.processes import ProcessPool
from mesh.protocol.messages import MSGPACK
from mesh.testing import Mesh, no_leaks
from tests.patience import until

HERE = Path(__file__).parent


#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(_words(child))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Heavy, settings={"worker.processes": 2, "worker.threads": 2}) as m:
        yield m


async def test_a_thread_blocks_nobody_and_knows_the_call(m: Mesh, tmp_path: Path):
    """The loop answers others meanwhile."""
    call = m.call("heavy.in_thread", str(tmp_path / "go"))
    assert await m.call("heavy.quick") == "quick"
    assert not call.done()
    (tmp_path / "go").touch()
    assert await call is True


async def test_a_busy_process_leaves_the_loop_free(m: Mesh, tmp_path: Path):
    """While a child has a processor to itself, a hundred calls are answered; then it answers too."""
    call = m.call("heavy.spin", str(tmp_path / "begun"), str(tmp_path / "go"))
    await until((tmp_path / "begun").exists)
    for _ in range(100):
        assert await m.call("heavy.quick") == "quick"
    assert not call.done()
    (tmp_path / "go").touch()
    assert await call != os.getpid()
    assert await m.rpc[Heavy].add(2, 3) == 5


async def test_a_cancelled_call_keeps_its_place_until_the_process_is_done(m: Mesh, tmp_path: Path):
    """A process cannot be stopped: the limit counts it for as long as it works."""
    first = m.call("heavy.wait", str(tmp_path / "begun-1"), str(tmp_path / "go-1"))
    await until((tmp_path / "begun-1").exists)
    first.cancel()
    queued = m.call("heavy.wait", str(tmp_path / "begun-2"), str(tmp_path / "go-2"))
    await m.call("heavy.quick")
    refused = m.call("heavy.wait", "x", "x")
    with pytest.raises(mesh.Overloaded, match=r"heavy\.wait: .*\(1 running, 1 queued\)"):
        await refused
    assert not (tmp_path / "begun-2").exists()
    (tmp_path / "go-1").touch()
    await until((tmp_path / "begun-2").exists)
    (tmp_path / "go-2").touch()
    assert await queued > 0


async def test_a_deadline_in_a_process_is_told_in_time(m: Mesh, tmp_path: Path):
    """The caller does not wait for the child."""
    call = m.call("heavy.wait", str(tmp_path / "begun"), str(tmp_path / "go"), timeout=0.5)
    with pytest.raises(mesh.DeadlineExceeded):
        await call
    (tmp_path / "go").touch()
    assert await m.call("heavy.quick") == "quick"


async def test_arguments_are_refused_by_the_child_as_by_the_loop(m: Mesh):
    """With the path, and as a refusal: the method has not run."""
    with pytest.raises(mesh.BadArguments, match=r'"b" of heavy\.add: .*int.*str') as caught:
        await m.call("heavy.add", 1, "two")
    assert caught.value.details["path"] == "$.b"


async def test_a_handlers_error_comes_out_of_a_process_with_type_and_code(m: Mesh):
    """As from the loop."""
    with pytest.raises(mesh.RemoteError) as caught:
        await m.call("heavy.fail")
    assert (caught.value.type_name, caught.value.code, caught.value.status) == ("OutOfStock", "out_of_stock", 409)
    with pytest.raises(mesh.RemoteError) as caught:
        await m.call("heavy.fail_plainly")
    assert (caught.value.type_name, caught.value.code) == ("KeyError", "handler_error")


async def test_a_child_that_crashes_is_told_and_replaced(m: Mesh):
    """Its caller learns that the process died; the next call has a new one."""
    with pytest.raises(mesh.MeshError, match=r"heavy\.crash: ") as caught:
        await m.call("heavy.crash")
    assert caught.value.code == "child_crashed"
    assert not caught.value.retryable
    assert await m.call("heavy.add", 1, 2) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_crash_fails_its_own_job_alone(m: Mesh, tmp_path: Path, number: signal.Signals):
    """Of two jobs in two processes, the one whose process dies fails; the other answers, and so do those behind it."""
    beside = m.call("heavy.spin", str(tmp_path / "begun"), str(tmp_path / "go"))
    await until((tmp_path / "begun").exists)
    waiting = [m.call("heavy.add", n, 1) for n in range(5)]
    crashing = m.call("heavy.die", int(number))
    with pytest.raises(mesh.MeshError) as caught:
        await crashing
    assert caught.value.code == "child_crashed"
    assert number.name in caught.value.message
    assert await asyncio.gather(*waiting) == [1, 2, 3, 4, 5]
    (tmp_path / "go").touch()
    assert await beside != os.getpid()


async def test_an_idle_process_that_dies_costs_no_job():
    """The next job is given to a new process."""
    offload = Offload(1, 1)
    reference = (Heavy.__module__, Heavy.__qualname__, "pid")
    try:
        first, _ = await offload.unpack(offload.in_process(reference, b"", MSGPACK), "heavy.pid")
        (pid,) = offload.pids
        os.kill(pid, signal.SIGKILL)
        second, _ = await offload.unpack(offload.in_process(reference, b"", MSGPACK), "heavy.pid")
        assert first != second
        assert offload.pids != [pid]
    finally:
        await offload.close()


async def test_a_task_beside_one_that_crashes_is_not_blamed(tmp_path: Path):
    """With no retries, the one whose process died is dead, the others are done at their first attempt."""
    async with Mesh(HeavyTasks, settings={"worker.processes": 2}) as m:
        beside = await m.node.defer("heavy_tasks.wait", str(tmp_path / "begun"), str(tmp_path / "go"))
        await until((tmp_path / "begun").exists)
        crash = await m.node.defer("heavy_tasks.crash")
        behind = await m.node.defer("heavy_tasks.double", 21)
        assert await behind.result() == 42
        await until_dead(m, crash.id)
        (tmp_path / "go").touch()
        assert await beside.result() == "waited"
        assert [each.id for each in await m.dead()] == [crash.id]


async def until_dead(m: Mesh, job: str) -> None:
    async with asyncio.timeout(10):
        while job not in [each.id for each in await m.dead()]:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)


KINDS = ["StopIteration", "StopAsyncIteration", "GeneratorExit", "CancelledError", "Unshown", "Unpickled", "Mute"]


@pytest.mark.parametrize("where", ["thread", "process", "plain"])
async def test_whatever_is_raised_is_told_at_once(m: Mesh, where: str):
    """Also what a future does not take, and exceptions that can be neither shown nor pickled."""
    for kind in KINDS:
        with pytest.raises(mesh.RemoteError) as caught:
            await m.call(f"heavy.raise_in_{where}", kind, timeout=20.0)
        assert caught.value.code == "handler_error"
        assert kind in (caught.value.type_name, caught.value.message.partition("raised ")[2].partition("(")[0])


@pytest.mark.parametrize("where", ["thread", "process", "plain"])
async def test_what_a_handler_says_of_its_request_passes(m: Mesh, where: str):
    """From a child process, too, it is no failure of the handler's."""
    for kind in ("BadRequest", "Grouped"):
        with pytest.raises(mesh.BadRequest) as caught:
            await m.call(f"heavy.raise_in_{where}", kind, timeout=20.0)
        assert (caught.value.code, caught.value.status) == ("bad_request", 400)


async def test_a_result_that_cannot_travel_is_told_at_once(m: Mesh):
    """As from the loop."""
    for where in ("thread", "process"):
        with pytest.raises(mesh.MeshError) as caught:
            await m.call(f"heavy.unsendable_in_{where}", timeout=20.0)
        assert caught.value.code != "deadline_exceeded"


async def test_a_plain_def_blocks_nobody_and_knows_the_call(m: Mesh, tmp_path: Path):
    """It runs in a thread without having asked for one."""
    call = m.call("heavy.plain", str(tmp_path / "go"))
    assert await m.call("heavy.quick") == "quick"
    assert not call.done()
    (tmp_path / "go").touch()
    assert await call is True


async def test_a_job_that_cannot_be_sent_costs_its_process_but_leaks_none():
    """The next one has a new process, and the old one is gone with its descriptors."""
    pool = ProcessPool(1, abs)
    try:
        assert await asyncio.wrap_future(pool.submit(-1)) == 1
        open_files = psutil.Process().num_fds()
        for _ in range(2):
            (old,) = pool.pids
            with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
                await asyncio.wrap_future(pool.submit(lambda: None))
            assert pool.pids == []
            assert not psutil.pid_exists(old)
            assert await asyncio.wrap_future(pool.submit(-2)) == 2
        gc.collect()
        assert psutil.Process().num_fds() == open_files
    finally:
        pool.close()


async def test_a_stop_does_not_wait_for_a_child(m: Mesh, tmp_path: Path):
    """It is ended with the worker, and its caller told."""
    call = m.call("heavy.spin", str(tmp_path / "begun"), str(tmp_path / "never"))
    await until((tmp_path / "begun").exists)
    await m.workers(Heavy)[0].stop()
    with pytest.raises(mesh.MeshError):
        await call


async def test_children_die_with_a_worker_that_is_killed(tmp_path: Path):
    """kill -9 cannot be caught: each child watches for it, busy or not."""
    async with Mesh(transport="ipc") as m:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "calls_worker.py"), str(m.settings.mesh.run_dir), cwd=HERE
        )
        try:
            await m.node.wait_for("heavy", 20.0)
            call = m.call("heavy.spin", str(tmp_path / "begun"), str(tmp_path / "never"))
            await until((tmp_path / "begun").exists)
            idle = await m.call("heavy.pid")
            children = psutil.Process(process.pid).children(recursive=True)
            assert idle in [child.pid for child in children]
            process.kill()
            with pytest.raises(mesh.LinkLost):
                await call
            gone, alive = await asyncio.to_thread(psutil.wait_procs, children, 10.0)
            assert not alive, [child.cmdline() for child in alive]
            assert len(gone) == len(children)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

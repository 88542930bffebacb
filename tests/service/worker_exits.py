"""Services that raise what usually ends a process, and that fork."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mesh
from mesh.testing import Mesh


def _sleep_long(seconds: float) -> None:
    time.sleep(seconds)


class Alone(mesh.Service):
    """Runs in a forked child that has a mesh of its own."""

    @mesh.rpc
    def word(self) -> str:
        return "mine"

    @mesh.rpc
    async def leave(self) -> None:
        sys.exit(1)


def _run_a_mesh() -> None:
    sys.exit(asyncio.run(_ask_alone()))


async def _ask_alone() -> int:
    async with Mesh(Alone) as m:
        try:
            await m.call("alone.leave")
        except mesh.RemoteError as exc:
            return 15 if await m.call("alone.word") == "mine" and exc.details["exit_code"] == 1 else 1
    return 1


class Exits(mesh.Service):
    """Raises SystemExit and its kin wherever a service can."""

    heard: list[str] = []

    @mesh.rpc
    async def leave(self) -> None:
        sys.exit(3)

    @mesh.rpc
    async def interrupt(self) -> None:
        raise KeyboardInterrupt

    @mesh.rpc
    async def odd(self) -> None:
        raise OddError("odd")

    @mesh.rpc
    def leave_plainly(self) -> None:
        sys.exit("no more")

    @mesh.rpc(offload="thread")
    def leave_thread(self) -> None:
        sys.exit(4)

    @mesh.rpc(offload="process")
    def leave_process(self) -> None:
        sys.exit(5)

    @mesh.rpc
    async def gather(self) -> None:
        await asyncio.gather(_leave_soon(6), asyncio.sleep(0.01))

    @mesh.rpc
    async def items(self) -> AsyncIterator[int]:
        yield 1
        sys.exit(7)

    @mesh.rpc
    async def start_background(self) -> int:
        self.background = asyncio.create_task(_leave_soon(8))
        return os.getpid()

    @mesh.rpc
    async def stop_loop(self) -> int:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.01)
        return os.getpid()

    @mesh.rpc
    async def background_over(self) -> str:
        with contextlib.suppress(BaseException):
            await asyncio.wait([self.background])
        return type(self.background.exception()).__name__

    @mesh.rpc(idempotent=True)
    async def pid(self) -> int:
        return os.getpid()

    @mesh.task(retries=1, backoff="10ms")
    async def tried(self) -> None:
        sys.exit(9)

    @mesh.task(retries=0)
    async def neighbour(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @mesh.task(retries=0)
    def tried_plainly(self) -> None:
        sys.exit(10)

    @mesh.on("exits.one", to="one")
    async def on_one(self, data: str) -> None:
        Exits.heard.append(data)
        sys.exit(11)

    @mesh.on("exits.one", to="one")
    async def on_one_too(self, data: str) -> None:
        Exits.heard.append(data)

    @mesh.on("exits.every", to="every")
    async def on_every(self, data: str) -> None:
        Exits.heard.append(data)
        sys.exit(12)


class Ticks(mesh.Service):
    """A timer that raises."""

    ticks = 0
    raises: type[BaseException] = SystemExit

    @mesh.rpc
    async def pid(self) -> int:
        return os.getpid()

    @mesh.every("20ms")
    async def tick(self) -> None:
        Ticks.ticks += 1
        raise Ticks.raises


class OddError(BaseException):
    """Neither an Exception nor one that asyncio knows."""


async def _leave_soon(code: int) -> None:
    await asyncio.sleep(0)
    sys.exit(code)


class LeavesAtStart(mesh.Service):
    """Exits in `started`."""

    async def started(self) -> None:
        sys.exit(13)


class Forks(mesh.Service):
    """Forks in all the ways that there are."""

    @mesh.rpc
    async def pid(self) -> int:
        return os.getpid()

    @mesh.rpc
    async def process(self) -> int | None:
        """A child by `multiprocessing` that is told to end; its exit code."""
        child = multiprocessing.get_context("fork").Process(target=_sleep_long, args=(60.0,))
        child.start()
        child.terminate()
        await asyncio.to_thread(child.join, 5.0)
        code = child.exitcode
        if code is None:
            child.kill()
        return code

    @mesh.rpc
    async def process_with_a_mesh(self) -> int | None:
        child = multiprocessing.get_context("fork").Process(target=_run_a_mesh)
        child.start()
        await asyncio.to_thread(child.join, 15.0)
        return child.exitcode

    @mesh.rpc
    async def pool(self) -> list[int]:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return await asyncio.to_thread(pool.map, abs, [-1, -2])

    @mesh.rpc(offload="thread")
    def process_in_thread(self) -> int | None:
        child = multiprocessing.get_context("fork").Process(target=_sleep_long, args=(60.0,))
        child.start()
        child.terminate()
        child.join(5.0)
        code = child.exitcode
        if code is None:
            child.kill()
        return code

    @mesh.rpc
    async def fork(self, how: str) -> int:
        """Fork directly; how the child ended, as the status of `wait`."""
        child = os.fork()
        if child == 0:
            if how == "exit":
                sys.exit(14)
            if how == "return":
                return 0
            if how == "await":
                await asyncio.sleep(0.01)
            if how == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            os._exit(15)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        return os.waitstatus_to_exitcode(status)

    @mesh.rpc
    async def preexec(self) -> int:
        """A subprocess with a `preexec_fn`, told to end before its `exec`."""
        # The function runs between fork and exec, where the child is still a copy of this process.
        child = await asyncio.to_thread(_start_told)
        return await asyncio.to_thread(child.wait)


def _start_told() -> subprocess.Popen[Any]:
    def told() -> None:
        # Delivered when Python next looks at signals; by its default action it ends the child at once.
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        return subprocess.Popen(["sleep", "0"], preexec_fn=told)
    except subprocess.SubprocessError as exc:
        raise AssertionError("the child went on") from exc


class Plain(mesh.Service):
    """Handlers of every kind that are a plain `def`; each notes the thread that it ran in."""

    threads: dict[str, str] = {}

    def _note(self, what: str) -> None:
        Plain.threads.setdefault(what, threading.current_thread().name)

    @mesh.rpc
    def ask(self) -> str:
        self._note("call")
        return "called"

    @mesh.http.get("/plain")
    def route(self) -> str:
        self._note("route")
        return "routed"

    @mesh.task
    def count(self, n: int) -> int:
        self._note("task")
        return n + 1

    @mesh.on("plain.one")
    def heard(self, data: str) -> None:
        self._note("on")

    @mesh.on("plain.every", to="every")
    def heard_by_all(self, data: str, event: mesh.Event) -> None:
        assert event.data == data
        self._note("on every")

    @mesh.on("plain.durable", durable=True)
    def heard_again(self, data: str) -> None:
        self._note("on durable")

    @mesh.every("20ms")
    def tick(self) -> None:
        self._note("every")

    @mesh.rpc
    def stay(self) -> int:
        self._note("stay")
        Path("staying").touch()
        time.sleep(60.0)
        return 1

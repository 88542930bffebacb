"""The processes that a benchmark starts, and their end.

Owns: starting, waiting until ready, asking a client for one load, ending everything, also on error and on Ctrl-C.
Leaves to others: what is started (peers, stage).

Each child leads a process group of its own, so that what it started ends with it. Those of ours also end when their
stdin does, so that a benchmark killed with -9 leaves little behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: benchmarks/ lies in the project's root, which every Python child must find on its path.
ROOT = Path(__file__).resolve().parent.parent

STOP_S = 5.0


class ChildFailed(Exception):
    """A child ended, or said nothing in time; the message holds the end of what it wrote to stderr."""


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody listens on now; another process could still take one before we do."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports.append(int(one.getsockname()[1]))
        return ports


async def wait_for_port(port: int, timeout: float) -> None:
    """Return when something accepts connections on 127.0.0.1:`port`; ChildFailed after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if loop.time() > end:
                raise ChildFailed(f"nothing listens on port {port} after {timeout:g} s") from None
            await asyncio.sleep(0.02)
        else:
            writer.close()
            await writer.wait_closed()
            return


class Child:
    """One process. `ask` is for those that answer a line of JSON with a line of JSON."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, errors: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._errors = errors

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def complaint(self, what: str) -> ChildFailed:
        """An error that tells `what` and how the child's stderr ends."""
        tail = self._errors.read_text(errors="replace").strip().splitlines()[-8:]
        return ChildFailed("\n  ".join([f"{self.name}: {what}", *tail]))

    async def answer(self, timeout: float) -> dict[str, Any]:
        """The next line of JSON that it writes; other lines are its own affair and passed over."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                while line := await self._process.stdout.readline():
                    if line.startswith(b"{"):
                        return dict(json.loads(line))
        except TimeoutError:
            raise self.complaint(f"no answer within {timeout:g} s") from None
        code = await self._process.wait()
        raise self.complaint(f"ended with {code}")

    async def ask(self, question: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Write one line, read one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        return await self.answer(timeout)

    async def wait(self, timeout: float) -> int:
        """Its exit code, once it ends by itself."""
        try:
            async with asyncio.timeout(timeout):
                return await self._process.wait()
        except TimeoutError:
            raise self.complaint(f"still runs after {timeout:g} s") from None

    def signal(self, number: int) -> None:
        """Send a signal to its whole group; nothing if that is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def end(self) -> None:
        """Ask it to stop, insist after a while, reap it."""
        if self.running:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self._process.wait()
        # Also when it ended by itself: what it started may still run.
        self.signal(signal.SIGKILL)
        await self._process.wait()


class Children:
    """Everything started inside one `async with`; the last started is ended first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._all: list[Child] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end(*reversed(self._all))

    async def end(self, *children: Child) -> None:
        """End these, in this order, whatever happens meanwhile."""
        for child in children:
            if child in self._all:
                self._all.remove(child)
                await asyncio.shield(child.end())

    async def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        limit: int = 2**20,
    ) -> Child:
        """Start a process in `cwd` (this set's directory unless told otherwise); stderr goes to a file there."""
        errors = self.directory / f"{name}.err"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with errors.open("ab") as sink:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=sink,
                    cwd=cwd or self.directory,
                    env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", **(env or {})},
                    start_new_session=True,
                    limit=limit,
                )
            except OSError as exc:
                raise ChildFailed(f"{name}: {shlex.join(command)}: {exc}") from exc
        child = Child(name, process, errors)
        self._all.append(child)
        return child

    async def start_client(self, name: str, command: Sequence[str], *, timeout: float = 30.0, **how: Any) -> Child:
        """Start a process that says `{"ready": true}` once it may be asked."""
        child = await self.start(name, command, **how)
        try:
            said = await child.answer(timeout)
        except ChildFailed:
            # A client that finds nobody is seldom to blame: whoever ended before it is.
            for other in self._all:
                if not other.running and other is not child:
                    raise other.complaint("ended too early") from None
            raise
        if not said.get("ready"):
            raise child.complaint(f"said {said} instead of being ready")
        return child

    async def run(self, name: str, command: Sequence[str], *, timeout: float, **how: Any) -> str:
        """Run a command to its end; its stdout. ChildFailed unless it exits with 0."""
        child = await self.start(name, command, **how)
        assert child._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                said = (await child._process.stdout.read()).decode(errors="replace")
        except TimeoutError:
            raise child.complaint(f"still runs after {timeout:g} s") from None
        code = await child.wait(timeout)
        await self.end(child)
        if code:
            raise child.complaint(f"ended with {code}")
        return said


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]

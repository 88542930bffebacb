"""Python's standard prompt on a running event loop: top-level await, completion, and live links between the lines.

Owns: the console and its thread. The prompt waits in a thread; every line runs on the loop.
Leaves to others: completion (complete), the connection (loop).
"""

from __future__ import annotations

import ast
import asyncio
import code
import contextlib
import inspect
import os
import sys
import threading
import traceback
import types
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mesh
from mesh.cli import exits, loop
from mesh.cli.complete import Completer
from mesh.errors import MeshError

HISTORY = Path("~/.mesh_history")


async def execute(source: str) -> int:
    """Run a piece of code once, with `n` defined."""
    async with _names() as names:
        compiled = compile(source, "<mesh shell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = types.FunctionType(compiled, names)()
        if inspect.isawaitable(result):
            await result
    return exits.OK


async def interact(banner: Callable[[Any], str]) -> int:
    """Read and run lines until the end of input."""
    async with _names() as names:
        console = _Console(names, asyncio.get_running_loop())
        ended = asyncio.Event()
        running = asyncio.get_running_loop()

        def read_lines() -> None:
            try:
                if not sys.stdin.isatty():
                    sys.ps1 = sys.ps2 = ""  # a script is piped in: only its own output belongs on stdout
                console.interact(banner(names["n"]) if sys.stdin.isatty() else "", exitmsg="")
            finally:
                running.call_soon_threadsafe(ended.set)

        with _completion(names):
            # A daemon thread: when the loop ends, it may still wait for a line that never comes.
            threading.Thread(target=read_lines, name="mesh-shell", daemon=True).start()
            while not ended.is_set():
                try:
                    await ended.wait()
                except asyncio.CancelledError:
                    # Ctrl-C cancels the running line, if any, and otherwise has no effect.
                    task = asyncio.current_task()
                    if task is not None:
                        task.uncancel()
                    console.interrupt()
    return exits.OK


@contextlib.asynccontextmanager
async def _names() -> AsyncIterator[dict[str, Any]]:
    async with loop.connected() as node:
        yield {"__name__": "__console__", "__doc__": None, "n": node, "mesh": mesh, "asyncio": asyncio}


class _Console(code.InteractiveConsole):
    def __init__(self, names: dict[str, Any], running: asyncio.AbstractEventLoop) -> None:
        super().__init__(names)
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._names = names
        self._running = running
        self._task: asyncio.Task[Any] | None = None

    def runcode(self, code: types.CodeType) -> None:
        """Run one line on the loop, and wait here until it is done."""
        done: Future[None] = Future()

        def begin() -> None:
            self._task = asyncio.ensure_future(self._run(code))
            self._task.add_done_callback(finish)

        def finish(task: asyncio.Task[Any]) -> None:
            self._task = None
            if task.cancelled():
                done.set_exception(KeyboardInterrupt())
            elif (error := task.exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._running.call_soon_threadsafe(begin)
        try:
            done.result()
        except SystemExit:
            raise
        except KeyboardInterrupt:
            self.write("interrupted\n")
        except MeshError as exc:
            # An error of a call is a normal result here: a traceback through mesh's own code would only hide it.
            if os.environ.get("MESH_DEBUG"):
                self.showtraceback()
            else:
                self.write(f"{type(exc).__name__}: {exc}\n")
        except BaseException as exc:
            self.write("".join(traceback.format_exception(exc.with_traceback(_own_part(exc.__traceback__)))))

    async def _run(self, compiled: types.CodeType) -> None:
        result = types.FunctionType(compiled, self._names)()
        if inspect.isawaitable(result):
            await result

    def interrupt(self) -> None:
        """Cancel the running line."""
        if self._task is not None:
            self._task.cancel()


def _own_part(trace: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback from the typed line on, without the frames of the console."""
    part = trace
    while part is not None and part.tb_frame.f_code.co_filename != "<console>":
        part = part.tb_next
    return part or trace


@contextlib.contextmanager
def _completion(names: dict[str, Any]) -> Any:
    try:
        import readline
    except ImportError:
        yield
        return
    history = HISTORY.expanduser()
    if sys.stdin.isatty():
        readline.set_completer(Completer(names["n"], names).complete)
        # Quotes separate words, so that a target in quotes is completed alone; dots do not.
        readline.set_completer_delims(" \t\n`~!@#$%^&*()-=+[{]}\\|;:'\",<>/?")
        readline.parse_and_bind("tab: complete")
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
    try:
        yield
    finally:
        if sys.stdin.isatty():
            with contextlib.suppress(OSError):
                readline.write_history_file(history)

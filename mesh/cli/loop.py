"""Runs a command's coroutine, and keeps the connection to the mesh while it runs.

Owns: the event loop of commands (uvloop where installed), waiting for a hub and for the store, and reporting the wait.
Leaves to others: everything on the loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from mesh import forking
from mesh.errors import Unavailable
from mesh.policy.liveness import EXIT_MEMORY

if TYPE_CHECKING:
    from mesh.node.node import Node

T = TypeVar("T")

# A hub on this host answers in milliseconds; a hub on another host after a connect and a retry.
SYNC_S = 2.0
# How long blocking handlers may still run when everything else of a worker has ended.
THREADS_S = 2.0
# Report a missing store only after this time; a store that is being replaced is back by then.
STORE_S = 1.0


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end. Ctrl-C and SIGTERM cancel it, unless it handles signals itself.

    Raises:
        SystemExit: 143, by the convention of shells, after SIGTERM.
    """
    with asyncio.Runner(loop_factory=_factory()) as runner:
        forking.protect(runner.get_loop())
        try:
            return runner.run(_until_told(main))
        except asyncio.CancelledError:
            raise SystemExit(128 + signal.SIGTERM) from None
        finally:
            forking.release()


def run_services(main: Coroutine[Any, Any, T]) -> T:
    """Run a worker's `main` to its end, whatever the background tasks of its services raise.

    asyncio leaves the loop when any task raises SystemExit or KeyboardInterrupt. From a handler, such an exception is
    an ordinary failure; but from a background task that a handler started, it would end the worker with all its work.
    This function then enters the loop again: no scheduled callback is lost, and the task keeps its exception.
    """
    with asyncio.Runner(loop_factory=_factory()) as runner:
        loop = runner.get_loop()
        forking.protect(loop)
        task = loop.create_task(_until_told(main), name="mesh.main")
        try:
            while True:
                try:
                    result = loop.run_until_complete(task)
                    _leave_threads(result)
                    return result
                except (SystemExit, KeyboardInterrupt) as exc:
                    forking.end_forked_child(exc)
                    if task.done():
                        raise
                    _tell_of_exit(exc)
                except RuntimeError as exc:
                    # A handler called loop.stop().
                    if task.done():
                        raise
                    _tell_of_exit(exc)
        except asyncio.CancelledError:
            raise SystemExit(128 + signal.SIGTERM) from None
        finally:
            forking.release()


def _leave_threads(result: object) -> None:
    """Limit the duration of the exit: Python waits there for running threads, which cannot be stopped."""
    code = result if isinstance(result, int) else 0
    timer = threading.Timer(THREADS_S, os._exit, (code,))
    timer.daemon = True
    try:
        if code == EXIT_MEMORY:
            raise MemoryError
        timer.start()
    except (MemoryError, RuntimeError):
        # The worker is closed completely; Python's own exit would start threads, for which there is no memory.
        sys.stderr.flush()
        os._exit(code)


def _tell_of_exit(exc: BaseException) -> None:
    from mesh.telemetry.logs import get_logger

    get_logger("mesh.worker").error(
        "loop.exit_ignored",
        reason="a background task raised SystemExit or stopped the event loop; the worker continues",
        remedy="to stop a worker, send it SIGTERM",
        error=f"{type(exc).__name__}: {exc}",
        exc_info=(type(exc), exc, exc.__traceback__),
    )


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


async def _until_told(main: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    # SIGHUP comes from `supervisorctl signal HUP` or a closed terminal; under nohup it stays ignored.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        loop.add_signal_handler(signal.SIGHUP, _hang_up)
    return await main


def _hang_up() -> None:
    """Treat SIGHUP as SIGTERM: the process finishes its work, and supervisor starts it again."""
    # Only once: a second SIGTERM ends a worker at once.
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGTERM)


@asynccontextmanager
async def connected(wait_s: float = SYNC_S) -> AsyncIterator[Node]:
    """A node that has received the registry.

    Raises:
        Unavailable: no hub has answered within `wait_s`; raised at once when keys do not allow the connection.
    """
    from mesh.cli import setting
    from mesh.config import OPERATOR
    from mesh.node.connect import connect

    async with connect(setting.settings(), wait_s=wait_s, role=OPERATOR) as node:
        if not node.agent.synced:
            raise unheard(node)
        yield node


def unheard(node: Node) -> Unavailable:
    """The error for a node that no hub has answered, with the state of the link to each hub."""
    from mesh.transport.refusals import KeysRefused

    told = [f"{hub.endpoint} ({hub.reason})" if hub.reason else hub.endpoint for hub in node.agent.hubs_status()]
    return (KeysRefused if node.agent.refused else Unavailable)(f"no hub answers at {', '.join(told)}")


@asynccontextmanager
async def stored() -> AsyncIterator[Node]:
    """As `connected`, for commands that use the store."""
    async with connected() as node, awaiting_store(node):
        yield node


@asynccontextmanager
async def awaiting_store(node: Node) -> AsyncIterator[None]:
    """Report on stderr that the command waits for the store, while no store is available."""
    if "sqlite" not in node.durable.engines.names:
        yield
        return
    telling = asyncio.create_task(_tell_of_store(node), name="mesh.waiting")
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _tell_of_store(node: Node) -> None:
    from mesh.cli.output import note
    from mesh.engines.sqlite.messages import SERVICE

    while True:
        await node.clock.sleep(STORE_S)
        if not node.instances(SERVICE):
            break
    wait = f"{node.durable.timeout_s:g} s"
    note(f"no store answers; waiting for one up to {wait} (`mesh up` starts it; `mesh logs store` shows why it ended)")

"""Running a command's coroutine, and being connected while it runs.

Owns: the event loop of commands (uvloop where it is installed), the first word of a hub, and saying what is waited for.
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
    from mesh.service.node import Node

T = TypeVar("T")

# A hub on this host answers in milliseconds; one on another, after a connect and a retry.
SYNC_S = 2.0
# What blocking handlers may still take when everything else of a worker has ended.
THREADS_S = 2.0
# Nobody wonders before; a store that is being replaced is back by then.
STORE_S = 1.0


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end. Ctrl-C and SIGTERM cancel it, unless it deals with signals itself.

    Raises:
        SystemExit: 143, as a shell has it, after SIGTERM.
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

    asyncio leaves the loop when any task raises SystemExit or KeyboardInterrupt. What a handler raises is its own
    failure; what a task raises that a handler started and left would end the worker with all that it has in hand. The
    loop is then entered again: nothing that was due is lost, and the task keeps its exception.
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
    """Bound how long the exit takes: Python waits there for threads that still run, which nothing can stop."""
    code = result if isinstance(result, int) else 0
    timer = threading.Timer(THREADS_S, os._exit, (code,))
    timer.daemon = True
    try:
        if code == EXIT_MEMORY:
            raise MemoryError
        timer.start()
    except (MemoryError, RuntimeError):
        # Everything of the worker is closed; Python's own exit starts threads, for which there is no memory.
        sys.stderr.flush()
        os._exit(code)


def _tell_of_exit(exc: BaseException) -> None:
    from mesh.telemetry.logs import get_logger

    get_logger("mesh.worker").error(
        "a background task of a service tried to end the event loop; the worker goes on. "
        "To stop a worker, send it SIGTERM",
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
    # `supervisorctl signal HUP`, or a terminal that was closed; under nohup it stays ignored.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        loop.add_signal_handler(signal.SIGHUP, _hang_up)
    return await main


def _hang_up() -> None:
    """SIGHUP is another word for SIGTERM: what is in hand is finished, and supervisor starts the process anew."""
    # Only once: of a second SIGTERM a worker ends at once.
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGTERM)


@asynccontextmanager
async def connected(wait_s: float = SYNC_S) -> AsyncIterator[Node]:
    """A node that knows who runs.

    Raises:
        Unavailable: no hub has answered within `wait_s`; at once when keys do not allow it.
    """
    from mesh.cli import setting
    from mesh.config import OPERATOR
    from mesh.service.connect import connect

    async with connect(setting.settings(), wait_s=wait_s, role=OPERATOR) as node:
        if not node.agent.synced:
            raise unheard(node)
        yield node


def unheard(node: Node) -> Unavailable:
    """The error for a node that no hub has answered, with what is known of each of them."""
    from mesh.transport.refusals import KeysRefused

    told = [f"{hub.endpoint} ({hub.reason})" if hub.reason else hub.endpoint for hub in node.agent.hubs_status()]
    return (KeysRefused if node.agent.refused else Unavailable)(f"no hub answers at {', '.join(told)}")


@asynccontextmanager
async def stored() -> AsyncIterator[Node]:
    """`connected`, for what the store answers."""
    async with connected() as node, awaiting_store(node):
        yield node


@asynccontextmanager
async def awaiting_store(node: Node) -> AsyncIterator[None]:
    """Say on stderr what is waited for, while no store is there to answer."""
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

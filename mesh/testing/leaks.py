"""Detects what a test leaks: tasks, threads, open files.

Owns: comparing before and after. Leaves to others: cleaning up.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

#: How many seconds to wait for resources that are being released: a thread that is ending, a descriptor that libzmq's
#: reaper closes.
PATIENCE_S = 5.0
#: Threads that belong to the loop or to the standard library, and end with them.
OTHERS = ("asyncio_", "uvloop_", "pydevd", "MainThread")


@asynccontextmanager
async def no_leaks() -> AsyncIterator[None]:
    """Everything that is started inside the block must have ended when it is left.

    Raises:
        AssertionError: a task, thread or open file is left; the message says which.
    """
    tasks, threads, files, zmq_collects = _tasks(), _threads(), _files(), _zmq_collects()
    yield
    await _until_same("tasks", tasks, _tasks)
    await _until_same("threads", threads, _threads)
    if zmq_collects or not _zmq_collects():
        await _until_same("open files", files, _files, own_sockets=_own_sockets())


async def _until_same(
    what: str, before: dict[object, str], look: Callable[[], dict[object, str]], *, own_sockets: int = 0
) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        left = {key: name for key, name in look().items() if key not in before}
        if not left or (len(left) <= own_sockets and all("socket:" in name for name in left.values())):
            return
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"{what} left behind: {', '.join(sorted(left.values()))}")
        gc.collect()
        await asyncio.sleep(0.005)


def _own_sockets() -> int:
    """uvloop creates a pair of sockets for signals for each run; the two halves of a fixture are two runs."""
    return 2 if type(asyncio.get_running_loop()).__module__.startswith("uvloop") else 0


def _tasks() -> dict[object, str]:
    current = asyncio.current_task()
    return {task: str(task) for task in asyncio.all_tasks() if task is not current}


def _threads() -> dict[object, str]:
    return {
        thread.ident: thread.name
        for thread in threading.enumerate()
        if not thread.name.startswith(OTHERS) and not _of_zmq(thread)
    }


def _zmq_collects() -> bool:
    """Whether pyzmq has started its thread: at the first large frame, with its own files, for the whole process."""
    return any(map(_of_zmq, threading.enumerate()))


def _of_zmq(thread: threading.Thread) -> bool:
    return type(thread).__module__.startswith("zmq.")


def _files() -> dict[object, str]:
    """Descriptors with their targets: a number that was closed and reused for another file counts as another."""
    found: dict[object, str] = {}
    kept = _of_the_standard_library()
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return {}
    for number in numbers:
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if int(number) not in kept and not target.startswith("/proc/"):
            found[(number, target)] = f"{number} → {target}"
    return found


def _of_the_standard_library() -> set[int]:
    """The pipe to multiprocessing's resource tracker, which exists as long as this process."""
    from multiprocessing import resource_tracker

    fd = getattr(resource_tracker._resource_tracker, "_fd", None)
    return {fd} if isinstance(fd, int) else set()

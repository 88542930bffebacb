"""Waiting for what no event announces: another process, a socket, a thread or a file."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

#: Nothing here takes a second on an idle machine; the limit only turns a hang into a failure.
PATIENCE_S = 20.0


async def until(condition: Callable[[], object], what: str = "it holds", within_s: float = PATIENCE_S) -> float:
    """Return once `condition()` is true: how many seconds that took."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < within_s, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.002)
    return time.monotonic() - began


def run_until_terminated(work: Coroutine[Any, Any, None]) -> None:
    """Run a program's coroutine to its end; SIGTERM cancels it, and the process ends with exit code 0."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        with suppress(asyncio.CancelledError):
            await work

    asyncio.run(main())

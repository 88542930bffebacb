"""Work that takes long and blocks, beside the store's loop.

Owns: a thread of its own for it. Leaves to others: what the work is (service), and that it may run beside turns (core).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run what reads the whole file in a thread of its own, which does not keep this process from ending."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(value: T | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)  # type: ignore[arg-type]  # without an error there is a value

    def run() -> None:
        value: T | None = None
        error: Exception | None = None
        try:
            value = work()
        except Exception as exc:
            error = exc
        try:
            loop.call_soon_threadsafe(tell, value, error)
        except RuntimeError:
            return  # the loop has ended, and with it whoever asked

    threading.Thread(target=run, name="mesh.store long", daemon=True).start()
    return await answer

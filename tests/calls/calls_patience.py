"""Waiting for what nothing announces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

#: Nothing here takes a second on an idle machine; this only turns a hang into a failure.
PATIENCE_S = 20.0


async def until(condition: Callable[[], object]) -> None:
    """Return once `condition()` is true: another process, a socket or a thread is about to make it so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.001)


async def one_line(log: Any, event: str) -> dict[str, Any]:
    """The first line of this event, once it is there; `log` is the fixture."""
    await until(lambda: log.lines(event))
    return dict(log.lines(event)[0])

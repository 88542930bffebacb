"""Waiting for what nothing announces."""

from __future__ import annotations

from typing import Any

from tests.patience import until


async def one_line(log: Any, event: str) -> dict[str, Any]:
    """The first line of this event, once it is there; `log` is the fixture."""
    await until(lambda: log.lines(event))
    return dict(log.lines(event)[0])

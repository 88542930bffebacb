"""Sends an item of the running stream from anywhere in its handler, and not by `yield`.

Owns: waiting for credit there. Leaves to others: what is sent (push, apps.asgi), items that are yielded (handling).
"""

from __future__ import annotations

import asyncio

from mesh.calls.context import CURRENT
from mesh.calls.running import Running
from mesh.protocol.codec import Buffer


def running_stream() -> Running | None:
    """The stream that the running code handles; None outside of one."""
    running = CURRENT.get()
    return running if isinstance(running, Running) and running.outflow is not None else None


async def send_item(running: Running, body: Buffer, encoding: int) -> None:
    """Send one item; waits while the reader is slow."""
    assert running.outflow is not None
    while not running.outflow.take():
        if running.credited is None or running.credited.done():
            running.credited = asyncio.get_running_loop().create_future()
        await asyncio.shield(running.credited)
    running.conversation.callee.item(running.id, body, encoding)
    running.conversation.channel.wake()

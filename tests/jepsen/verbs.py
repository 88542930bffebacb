"""The operations of a run, each written into the history with what its caller was told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp

import mesh

from .history import QUESTIONS, Kind, Recorder

TTL_S: Final = 2.0
#: How often a holder acts under its lock.
TOUCH_S: Final = 0.02

#: What may come of it while things go wrong. Anything else is a fault of this rig, and ends the client.
PASSING: Final = (mesh.MeshError, aiohttp.ClientError, TimeoutError)


def outcome(error: BaseException) -> tuple[Kind, str]:
    """What an error says of the operation: certainly not done, or ambiguous."""
    if isinstance(error, mesh.Conflict):
        return "conflict", error.code
    if isinstance(error, mesh.TryLater | mesh.BadRequest):
        return "fail", error.code
    if isinstance(error, aiohttp.ClientConnectorError):
        return "fail", "not connected"
    if isinstance(error, mesh.MeshError):
        return "info", error.code
    return "info", type(error).__name__


async def operate(
    recorder: Recorder, do: str, key: str, value: Any, work: Callable[..., Awaitable[Any]], *args: Any, **more: Any
) -> tuple[Kind, Any]:
    """Do it, and write down how it ended: its kind and its answer."""
    op = recorder.begin(do, key, value)
    try:
        result = await work(*args, **more)
    except PASSING as exc:
        kind, code = outcome(exc)
        recorder.end(op, "fail" if do in QUESTIONS else kind, error=code)
        return kind, None
    recorder.end(op, "ok", result)
    return "ok", result


async def hold(n: Any, recorder: Recorder, name: str, seconds: float) -> None:
    """Hold a lock for a while, act under it, and write to what it guards: a smaller token gives way."""
    op = recorder.begin("lock", name)
    granted = False
    try:
        async with n.lock(name, ttl=TTL_S, wait=TTL_S) as held:
            granted = True
            recorder.end(op, "ok", held.token)
            ends_at = time.monotonic() + seconds
            await _write(n, recorder, name, held.token)
            while time.monotonic() < ends_at:
                await asyncio.sleep(TOUCH_S)
                # Read first: frozen between the two, it would look as if it had acted later than it has.
                at = time.monotonic()
                if held.lost.is_set():
                    break
                recorder.write_touch(op, at)
    except PASSING as exc:
        kind, code = outcome(exc)
        recorder.end(op, "end" if granted else kind, error=code)
    else:
        recorder.end(op, "end")


async def _write(n: Any, recorder: Recorder, name: str, token: int) -> None:
    guard = n.state("register")
    key = f"guard/{name}"
    for serial in range(3):
        kind, found = await operate(recorder, "read", key, None, _read, guard, key)
        if kind != "ok":
            return
        value, etag = found
        if token < int((value or "0").partition(":")[0]):
            return  # fenced: somebody with a larger token has been here
        new = f"{token}:{serial}:{time.monotonic_ns()}"
        kind, _ = await operate(recorder, "swap", key, [value, new], guard.set, key, new, etag=etag)
        if kind != "conflict":
            return


async def _read(namespace: Any, key: str) -> list[Any]:
    value, etag = await namespace.get(key)
    return [value, etag]

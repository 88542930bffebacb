"""Handlers that are a plain `def`: they may block, so they run in the worker's threads.

Owns: turning such a handler into one that the loop can await.
Leaves to others: the threads (calls.offload); calls and tasks, for which `Method` and `Work` name the executor.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from mesh.calls.offload import Offload
from mesh.service.service import Service


def blocks(function: Callable[..., Any]) -> bool:
    """Whether the function is a plain `def`, which may block its thread."""
    return not any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, inspect.unwrap(function))
    )


def awaitable(service: Service, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """The bound handler itself when it is an `async def`; else a wrapper that runs it in a thread of the worker."""
    if not blocks(function):
        return function

    async def run(*args: Any, **kwargs: Any) -> Any:
        offload = getattr(service.node, "offload", None)
        if not isinstance(offload, Offload):
            return await asyncio.to_thread(function, *args, **kwargs)
        return await asyncio.wrap_future(offload.in_thread(partial(function, **kwargs), args))

    run.__wrapped__ = function  # type: ignore[attr-defined]  # where it is defined, for the log
    return run

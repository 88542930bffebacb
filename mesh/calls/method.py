"""One method that a worker answers, with everything that the server needs to know about it, computed once.

Owns: this record. `service.describe` makes it from a decorated function; the server only reads it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

Offload = Literal["", "thread", "process"]


class Method(msgspec.Struct, frozen=True, gc=False):
    """A callable with its types resolved.

    Attributes:
        target: "service.method", the name that calls use.
        service: the service's name, for limits, logs and metrics.
        name: the method's own name.
        run: the bound function. `async def` for a call, an async generator function for a stream, a plain `def` when
            the method is offloaded to a thread or a process.
        decode_args: (body, encoding) -> (positional values for `run`, in order). Accepts an array of positional
            arguments, a map of named ones, or a map that mixes integer keys (positions) and names.
            Raises BadArguments with `details["path"]`. A RAW body needs a method with exactly one `bytes` parameter.
        encode_result: (value, requested encoding) -> (body, encoding used): bytes are sent RAW.
        stream: `run` is an async generator function.
        asynchronous: `run` returns an awaitable (False for a plain def).
        idempotent, timeout_s: as declared; the caller learns them from the registry.
        concurrency: how many calls may run at once in this worker; 0: only the service's limit applies.
        queue: how many more may wait when `concurrency` is reached.
        offload: where it runs: on the loop, in a thread, or in a process.
        reference: ("package.module", "Class", "method") for a process to find it again; empty unless offloaded.
        check_result: a process that runs the method rejects an answer that does not match the annotation.
        around: of an offloaded method: puts its interceptors around the function that starts it in its executor; None
            when it has none. In all other methods `run` contains them.
        inbound: of a method with a client stream: the place of that parameter among all, and (body, encoding) -> an
            item; raises BadArguments.
        decode_result: with `around`: (body, encoding) -> the answer of a child process.
    """

    target: str
    service: str
    name: str
    run: Callable[..., Any]
    decode_args: Callable[[Any, int], tuple[Any, ...]]
    encode_result: Callable[[Any, int], tuple[Any, int]]
    stream: bool = False
    asynchronous: bool = True
    idempotent: bool = False
    timeout_s: float | None = None
    concurrency: int = 0
    queue: int = 0
    offload: Offload = ""
    reference: tuple[str, str, str] | tuple[()] = ()
    check_result: bool = True
    around: Callable[[Any], Callable[[Any], Awaitable[Any]]] | None = None
    decode_result: Callable[[Any, int], Any] | None = None
    inbound: tuple[int, Callable[[Any, int], Any]] | None = None

    @property
    def opened(self) -> bool:
        """Whether it is opened, not called: items go in some direction."""
        return self.stream or self.inbound is not None

"""One question to the store, asked again while the store is away.

Owns: which errors are worth another try, and when it is too late.
Leaves to others: links and instances (calls.client), units (batching), what the answers mean (client).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from mesh.calls.context import CURRENT
from mesh.clock import Clock
from mesh.engines.sqlite.messages import SERVICE, encode
from mesh.errors import (
    BadReply,
    Cancelled,
    DeadlineExceeded,
    Draining,
    LinkLost,
    MeshError,
    Overloaded,
    Unavailable,
    Uncertain,
    UnknownMethod,
    UnknownService,
)
from mesh.policy.backoff import Backoff
from mesh.protocol.messages import MSGPACK

RETRY: Final = Backoff(0.02, 1.0)
#: Said when nobody answered in time.
NO_STORE: Final = "no store could be reached in time; is one running? (`mesh store`, or `mesh up`)"

#: What says nothing of the request itself. By class and not by kind: Unwritable and LockTaken are answers, too.
PASSING: Final = frozenset(
    {
        # Nothing was done: no store is there, it is leaving, has too much to do, or is not yet what it will be.
        Unavailable,
        Draining,
        Overloaded,
        UnknownService,
        UnknownMethod,
        # It may have been done.
        LinkLost,
        DeadlineExceeded,
        Cancelled,
    }
)


class Asker(Protocol):
    """What is needed of mesh.calls.client.Client."""

    def call(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        *,
        timeout: float | None = None,
        idempotent: bool | None = None,
        decode: Any = ...,
    ) -> asyncio.Future[Any]: ...

    def stream(
        self, target: str, body: Any, encoding: int = 0, *, timeout: float | None = None, decode: Any = ...
    ) -> Any: ...


def passing(error: BaseException) -> bool:
    """Whether another try may find what this one did not."""
    return type(error) in PASSING


def answer_of(shape: Any) -> Callable[[Any, int], Any]:
    """A decoder of answers of that type."""
    decode = msgspec.msgpack.Decoder(shape).decode

    def read(body: Any, encoding: int) -> Any:
        if encoding != MSGPACK:
            raise BadReply(f"{SERVICE} answered in encoding {encoding}")
        try:
            return decode(body)
        except msgspec.MsgspecError as exc:
            raise BadReply(
                f"{SERVICE}: the answer is not what was agreed, run the same release everywhere: {exc}"
            ) from exc

    return read


class Line:
    """Asks the store, for as long as the asker has time."""

    def __init__(self, asker: Asker, clock: Clock, rng: random.Random) -> None:
        self._asker = asker
        self._clock = clock
        self._random = rng.random

    async def ask(self, method: str, *args: Any, timeout_s: float, read: Callable[[Any, int], Any]) -> Any:
        """The answer.

        Raises:
            Unavailable: no store could be reached in time; nothing was done.
            Uncertain: a store was reached, and has not answered in time.
            MeshError: as the store answered.
        """
        body = encode(args)
        now = self._clock.now()
        deadline_at = now + timeout_s
        outer = CURRENT.get()
        if outer is not None and outer.deadline_at < deadline_at:
            deadline_at = outer.deadline_at
        doubt: Uncertain | None = None
        failures = 0
        while True:
            try:
                return await self._asker.call(
                    f"{SERVICE}.{method}",
                    body,
                    timeout=max(0.001, deadline_at - now),
                    idempotent=False,
                    decode=read,
                )
            except MeshError as error:
                if not passing(error):
                    raise
                if isinstance(error, Uncertain):
                    doubt = error
                failures += 1
                pause_s = RETRY.delay(failures, self._random())
                now = self._clock.now()
                if now + pause_s >= deadline_at:
                    if doubt is not None:
                        raise doubt from None
                    if isinstance(error, Overloaded):
                        raise
                    raise Unavailable(NO_STORE) from error
            await self._clock.sleep(pause_s)
            now = self._clock.now()

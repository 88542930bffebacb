"""One request to the store, retried while the store is unreachable.

Owns: which errors are worth a retry, and until when.
Leaves to others: links and instances (calls.client), units (batching), interpreting the answers (client).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from mesh.calls.context import inherited
from mesh.calls.options import CallOptions
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
#: The message when no store answered in time.
NO_STORE: Final = "no store could be reached in time: start one with `mesh store` or `mesh up`"

#: Errors that do not depend on the request itself. Not all of TryLater: Unwritable and LockTaken are answers.
PASSING: Final = frozenset(
    {
        # Nothing was done: there is no store, it is draining, is overloaded, or is of an older release.
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
    """The methods of mesh.calls.client.Client that are used here."""

    def call(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        options: CallOptions = ...,
        *,
        decode: Any = ...,
    ) -> asyncio.Future[Any]: ...

    def stream(
        self, target: str, body: Any, encoding: int = 0, options: CallOptions = ..., *, decode: Any = ...
    ) -> Any: ...


def passing(error: BaseException) -> bool:
    """Whether a retry may succeed."""
    return type(error) in PASSING


def answer_of(shape: Any) -> Callable[[Any, int], Any]:
    """A decoder of answers of type `shape`."""
    decode = msgspec.msgpack.Decoder(shape).decode

    def read(body: Any, encoding: int) -> Any:
        if encoding != MSGPACK:
            raise BadReply(f"{SERVICE} answered in encoding {encoding}")
        try:
            return decode(body)
        except msgspec.MsgspecError as exc:
            raise BadReply(f"{SERVICE}: the answer cannot be decoded: run the same release everywhere: {exc}") from exc

    return read


class StoreRequests:
    """Sends requests to the store, and retries them until the caller's deadline."""

    def __init__(self, asker: Asker, clock: Clock, rng: random.Random) -> None:
        self._asker = asker
        self._clock = clock
        self._random = rng.random

    async def ask(self, method: str, *args: Any, timeout_s: float, read: Callable[[Any, int], Any]) -> Any:
        """Send a request; return the answer.

        Raises:
            Unavailable: no store could be reached in time; nothing was done.
            Uncertain: a store was reached, but has not answered in time.
            MeshError: the store's error.
        """
        body = encode(args)
        now = self._clock.now()
        deadline_at = inherited(now + timeout_s)
        doubt: Uncertain | None = None
        failures = 0
        while True:
            try:
                return await self._asker.call(
                    f"{SERVICE}.{method}",
                    body,
                    0,
                    CallOptions(max(0.001, deadline_at - now), idempotent=False),
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

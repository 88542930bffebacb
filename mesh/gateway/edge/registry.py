"""The concerns of the edge, and their order.

Owns: the list, the outermost first. A new concern is a module and a line here.
Leaves to others: each concern (one module each), user's HTTP interceptors, which run inside of all concerns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from mesh.gateway.edge import caching, compression, concurrency, cors, rates, security_headers
from mesh.gateway.edge.auth import concern as auth
from mesh.gateway.edge.contract import Concern
from mesh.gateway.edge.transport_security import transport_security
from mesh.gateway.front import Front

#: Makes a concern from the settings; None when they do not switch it on.
Make = Callable[[Front], Concern | None]

#: The outermost first. What changes answers comes before what may refuse a request, so that refusals get the same
#: header fields; what is cheap to check comes before what is expensive. Limits by address protect authentication from
#: guesses; the other limits need to know the caller.
CONCERNS: Final[tuple[Make, ...]] = (
    transport_security,
    security_headers.make,
    cors.make,
    compression.make,
    caching.make,
    rates.by_address,
    auth.make,
    rates.by_caller,
    concurrency.make,
)


def concerns(front: Front) -> list[Concern]:
    """The concerns that the settings switch on, the outermost first.

    Raises:
        ConfigError: a setting is wrong; the message names it.
    """
    return [concern for make in CONCERNS if (concern := make(front)) is not None]


@asynccontextmanager
async def lifespans(front: Front) -> AsyncIterator[None]:
    """Start what the concerns need, and stop it in the opposite order."""
    async with AsyncExitStack() as stack:
        for concern in front.concerns:
            if concern.lifespan is not None:
                await stack.enter_async_context(concern.lifespan(front.node))
        yield

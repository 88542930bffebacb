"""The smallest service that shows one of each: a call, a stream, and both over HTTP.

Owns: saying hello. Leaves everything else to mesh.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import mesh
from mesh import http, rpc


class Greeting(mesh.Service):
    """Says hello."""

    name = "greeting"
    version = "1.0"
    # Also at POST /rpc/greeting/hello and /rpc/greeting/count. Without it, gateways reach only what has a route.
    expose = True

    # Saying hello twice does no harm: when a worker dies before it has answered, another one is asked.
    @http.get("/hello/{name}")
    @rpc(idempotent=True)
    async def hello(self, name: str) -> str:
        """Greet somebody by name."""
        return f"Hello, {name}!"

    @http.get("/count/{n}")
    @rpc
    async def count(self, n: int) -> AsyncIterator[int]:
        """Count from 0 up to, but not including, `n`: as many items of a stream."""
        for i in range(n):
            yield i

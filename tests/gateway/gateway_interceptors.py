"""Interceptors of test_gateway_interceptors. In a module of their own: mesh.toml names them by it."""

from __future__ import annotations

from typing import Any

import mesh
from mesh.gateway.mounts import Reply

#: What the interceptors did, in order. Each test clears it.
LOG: list[str] = []


class Keys(mesh.Interceptor):
    """Sets principal and tenant by a header, refuses the rest, and adds a header to every answer."""

    async def http(self, call: Any, proceed: Any) -> Any:
        LOG.append(f"keys {call.method} {call.path}")
        call.add_header("X-Seen", "keys")
        key = call.headers.get("X-Key")
        if key == "teapot":
            return Reply.json({"tea": True}, status=418)
        if key == "none":
            return None
        if key == "broken":
            raise RuntimeError("broken")
        if key is None and call.path == "/tell":
            raise mesh.Forbidden("no key")
        if key is not None:
            call.context.principal = key
            call.context.tenant = key.upper()
        return await proceed(call)


class Inner(mesh.Interceptor):
    """Inside of Keys."""

    async def http(self, call: Any, proceed: Any) -> Any:
        LOG.append("inner")
        answer = await proceed(call)
        LOG.append(f"inner {answer.status}")
        return answer

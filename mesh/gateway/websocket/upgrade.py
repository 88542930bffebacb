"""Finds and serves the WebSocket that a request asks for.

Owns: the handler's arguments, and counting the connection. Leaves to others: finding the route (gateway.routes), the
connection (session).
"""

from __future__ import annotations

from mesh.errors import MeshError
from mesh.gateway.front import Front
from mesh.gateway.problems import Unforeseen
from mesh.gateway.request import RawRequest, Request
from mesh.gateway.routes import Route
from mesh.gateway.transfer import Written
from mesh.gateway.websocket.session import Session

#: The verb of routes of WebSockets, in records and in the trie. No HTTP method has this name.
WEBSOCKET = "WEBSOCKET"


def asks(raw: RawRequest) -> bool:
    """Whether a request is the handshake of a WebSocket."""
    # Another protocol, such as h2c, is ignored, as RFC 9110 allows: the request is answered as it is.
    return raw._message.upgrade and raw.method == "GET" and "websocket" in raw.headers.get("Upgrade", "").lower()


async def serve(front: Front, request: Request, route: Route, values: list[str]) -> Written:
    """Serve a connection to its end.

    Args:
        values: of the parameters in the route's path.

    Raises:
        MeshError: the handshake or an argument is wrong; nothing was sent.
    """
    stats = front.node.recorder.method("http", route.service, route.name)
    request.target = route.target
    code = "cancelled"
    stats.begin()
    try:
        body, encoding = route.binding.bind(values, request.query_string, headers=request.raw.headers)
        written, code = await Session(front, request, route, body, encoding).run()
        return written
    except MeshError as exc:
        code = exc.code
        raise
    except Exception:
        code = Unforeseen.code
        raise
    finally:
        request.seconds = front.node.clock.now() - request.began_at
        stats.end(request.seconds, code)

"""The HTTP decorators of service methods: `@http.get(path)` and the others.

Owns: their options, rejected at once when invalid.
Leaves to others: marks and paths (decorators), where parameters come from (http_sources),
the public names (mesh.http).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeVar, Unpack

from mesh.calls.declared import BadDeclaration
from mesh.errors import MeshError
from mesh.events.topics import check_pattern
from mesh.protocol.http_head import is_token
from mesh.service.decorators import RouteMark, marks_on, path_parameters
from mesh.service.edge_options import EdgeOptions, read_edge

F = TypeVar("F", bound=Callable[..., Any])

_MEDIA_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+(\s*;\s*[^\x00-\x1f]+)?")


def get(
    path: str,
    *,
    status: int = 200,
    produces: str = "",
    responses: Mapping[int, str] | None = None,
    **edge: Unpack[EdgeOptions],
) -> Callable[[F], F]:
    """Answer GET. The method must change nothing: a gateway repeats the call when an answer is lost.

    Args:
        path: "/hello/{name}": words and whole-word parameters; a last "{rest...}" matches the rest of the path.
        status: of a success, 200 to 299.
        produces: the Content-Type of the answer when it is not the usual one.
        responses: further statuses that the method sets with `http.Response`, and what each means, for OpenAPI.
        edge: what gateways do in front of it: `auth`, `limit`, `max_body`, `cors`, `cache`; see `http.EdgeOptions`.

    Raises:
        BadDeclaration: an option has an invalid value.
    """
    return _route("GET", path, status, produces, responses, edge)


def post(
    path: str,
    *,
    status: int = 200,
    produces: str = "",
    forms: bool = False,
    responses: Mapping[int, str] | None = None,
    **edge: Unpack[EdgeOptions],
) -> Callable[[F], F]:
    """Answer POST; arguments as for `get`.

    Args:
        forms: a method that takes its body as `bytes` also receives HTML forms (multipart/form-data,
            application/x-www-form-urlencoded), as they were sent: it parses them itself. Without it they are rejected.
    """
    return _route("POST", path, status, produces, responses, edge, forms)


def put(
    path: str,
    *,
    status: int = 200,
    produces: str = "",
    forms: bool = False,
    responses: Mapping[int, str] | None = None,
    **edge: Unpack[EdgeOptions],
) -> Callable[[F], F]:
    """Answer PUT; arguments as for `post`."""
    return _route("PUT", path, status, produces, responses, edge, forms)


def patch(
    path: str,
    *,
    status: int = 200,
    produces: str = "",
    forms: bool = False,
    responses: Mapping[int, str] | None = None,
    **edge: Unpack[EdgeOptions],
) -> Callable[[F], F]:
    """Answer PATCH; arguments as for `post`."""
    return _route("PATCH", path, status, produces, responses, edge, forms)


def delete(
    path: str,
    *,
    status: int = 200,
    produces: str = "",
    responses: Mapping[int, str] | None = None,
    **edge: Unpack[EdgeOptions],
) -> Callable[[F], F]:
    """Answer DELETE; arguments as for `get`."""
    return _route("DELETE", path, status, produces, responses, edge)


def websocket(
    path: str,
    *,
    topics: str | Sequence[str] = (),
    subprotocols: Sequence[str] = (),
    **edge: Unpack[EdgeOptions],
) -> Callable[[F], F]:
    """Serve a WebSocket. The method takes the client's messages as an asynchronous iterator, and yields messages::

        @http.websocket("/chat/{room}", topics=["room.*"])
        async def chat(self, room: str, messages: AsyncIterator[str]) -> AsyncIterator[str]:
            await http.join(f"room.{room}")
            async for message in messages:
                await self.emit(f"room.{room}", message)
                yield "sent"

    Messages are text for `str`, binary for `bytes`, and JSON for every other type. When the client closes the
    connection, the iterator ends; when the method returns, the connection is closed. A method without the iterator only
    sends.

    Args:
        path: as for `get`. Other parameters come from path, query, header fields and cookies of the handshake.
        topics: the events that `http.join` may send to clients: topics, `*` for one word, `#` for any number.
        subprotocols: those that the method speaks, the preferred one first.
        edge: see `get`.

    Raises:
        BadDeclaration: an option has an invalid value.

    See docs/websocket.md.
    """
    what = f"@http.websocket({path!r})"
    try:
        path_parameters(path)
        patterns = [check_pattern(topic) for topic in ([topics] if isinstance(topics, str) else topics)]
    except BadDeclaration as exc:
        raise BadDeclaration(f"@http.websocket: {exc.message}") from None
    except MeshError as exc:
        raise BadDeclaration(f"{what}: topics: {exc.message}") from None
    for name in subprotocols:
        if not isinstance(name, str) or not is_token(name):
            raise BadDeclaration(f"{what}: subprotocols: {name!r:.80} is not a token")
    mark = RouteMark("WEBSOCKET", path, edge=read_edge(what, edge), topics=patterns, subprotocols=list(subprotocols))

    def decorate(target: F) -> F:
        marks_on(target, what).routes.insert(0, mark)
        return target

    return decorate


def live(path: str, **edge: Unpack[EdgeOptions]) -> Callable[[F], F]:
    """Serve a stream that browsers resume: over Server-Sent Events, and over a WebSocket at the same address::

        @http.live("/orders/{id}/live")
        async def live(
            self, id: str, last: Annotated[str, http.Header("Last-Event-ID")] = "", after: int | None = None
        ) -> AsyncIterator[http.ServerSentEvent[Any]]:
            async for event in self.tail(f"order.{id}.#", after=int(last) if last else after):
                yield http.ServerSentEvent(event.data, id=str(event.offset), event=event.topic)

    An EventSource sends the id of the last item that it got when it connects again. A program on a WebSocket gets
    `{"id": …, "event": …, "data": …}` and passes the id in the query.

    Args:
        path, edge: as for `get`.

    Raises:
        BadDeclaration: an option has an invalid value.

    See docs/live.md.
    """
    by_get, by_socket = get(path, **edge), websocket(path, **edge)
    return lambda target: by_get(by_socket(target))


def _route(
    verb: str,
    path: str,
    status: int,
    produces: str,
    responses: Mapping[int, str] | None,
    edge: EdgeOptions,
    forms: bool = False,
) -> Callable[[F], F]:
    what = f"@http.{verb.lower()}({path!r})"
    try:
        path_parameters(path)
    except BadDeclaration as exc:
        raise BadDeclaration(f"@http.{verb.lower()}: {exc.message}") from None
    if type(status) is not int or not 200 <= status <= 299:
        raise BadDeclaration(f"{what}: status {status!r} is not a success status (200 to 299)")
    if produces and not _MEDIA_TYPE.fullmatch(produces):
        raise BadDeclaration(f"{what}: produces {produces!r} is not a Content-Type")
    mark = RouteMark(verb, path, status, produces, bool(forms), _read_responses(what, responses), read_edge(what, edge))

    def decorate(target: F) -> F:
        marks_on(target, what).routes.insert(0, mark)
        return target

    return decorate


def _read_responses(what: str, responses: Mapping[int, str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for status, meaning in (responses or {}).items():
        if isinstance(status, HTTPStatus):
            status = status.value
        if type(status) is not int or not 200 <= status <= 599:
            raise BadDeclaration(f"{what}: responses: {status!r} is not the status of a response (200 to 599)")
        if not isinstance(meaning, str):
            raise BadDeclaration(f"{what}: responses: the description of {status} must be text, not {meaning!r}")
        found[str(status)] = meaning
    return found

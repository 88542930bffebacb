"""Answers with a status, header fields and cookies, from the handler to the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

import mesh
from mesh import http
from mesh.calls.answers import Answer
from mesh.calls.declared import BadDeclaration
from mesh.calls.http_response import unwrapped
from mesh.errors import BadReply
from mesh.gateway import app
from mesh.gateway.answers import to_reply
from mesh.gateway.server import Gateway
from mesh.protocol import http_head
from mesh.protocol.messages import JSON
from mesh.service.describe import record
from mesh.testing import Fake, Mesh


class Order(msgspec.Struct):
    id: int


class Till(mesh.Service):
    """Answers in every way."""

    name = "till"
    expose = True

    @http.post(
        "/orders",
        status=201,
        responses={HTTPStatus.OK: "It was there already.", 201: "It is new.", 404: "No such item."},
    )
    async def order(self, id: int, wrong: bool = False) -> http.Response[Order]:
        if wrong:
            return http.Response({"id": "x"})  # type: ignore[arg-type]  # this is the point
        cookies = [http.SetCookie(name="last", value=str(id), max_age_s=60), http.delete_cookie("cart")]
        known = 200 if id == 1 else None
        headers = {"Location": f"/orders/{id}", "Link": ["</a>; rel=a", "</b>; rel=b"]}
        return http.Response(Order(id), status=known, headers=headers, cookies=cookies)

    @http.get("/either/{kind}")
    async def either(self, kind: str) -> Order | http.Response[Order] | None:
        match kind:
            case "plain":
                return Order(1)
            case "none":
                return http.Response(None, status=204)  # type: ignore[arg-type]
            case "same":
                return http.Response(None, status=304, headers={"ETag": '"v1"'})  # type: ignore[arg-type]
            case "teapot":
                return http.Response(Order(418), status=418)
        return None

    @http.get("/old")
    async def old(self) -> http.Response[None]:
        return http.redirect("/new?x=%20", status=308)

    @http.get("/picture", produces="image/png")
    async def picture(self) -> http.Response[bytes]:
        return http.Response(b"<svg/>", headers={"Content-Type": "image/svg+xml", "Cache-Control": "max-age=60"})

    @http.get("/thread")
    @mesh.rpc(offload="thread")
    def thread(self) -> http.Response[str]:
        return http.Response("t", headers={"X-From": "thread"})

    @http.get("/process")
    @mesh.rpc(offload="process")
    def process(self) -> http.Response[str]:
        return http.Response("p", status=202, headers={"X-From": "process"})

    @http.get("/injected")
    async def injected(self, text: str) -> http.Response[None]:
        return http.Response(None, headers={"X-Text": text})

    @http.get("/unpromised")
    async def unpromised(self) -> str:
        return http.Response("x")  # type: ignore[return-value]  # this is the point


@pytest.fixture
async def till() -> AsyncIterator[tuple[Mesh, aiohttp.ClientSession, Gateway]]:
    async with Mesh(Till) as m:
        gateway = Gateway(m.node, m.settings)
        listener = app.bind("127.0.0.1", 0)
        server = gateway.make_server()
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        async with aiohttp.ClientSession(app.shown(listener), cookie_jar=aiohttp.DummyCookieJar()) as session:
            yield m, session, gateway
        accepting.close()
        await server.shutdown(0.2)


async def get(session: aiohttp.ClientSession, path: str, verb: str = "GET", **options: Any) -> Any:
    async with session.request(verb, path, allow_redirects=False, **options) as answer:
        return answer.status, answer.headers, await answer.read()


async def test_the_handler_sets_status_header_fields_and_cookies(till: Any) -> None:
    """Over a declared route and over /rpc; without a status it is the route's."""
    _, session, _ = till
    for path, default in (("/orders", 201), ("/rpc/till/order", 200)):
        status, headers, body = await get(session, path, "POST", json={"id": 7})
        assert (status, msgspec.json.decode(body)) == (default, {"id": 7})
        assert headers["Location"] == "/orders/7"
        assert headers.getall("Link") == ["</a>; rel=a", "</b>; rel=b"]
        assert headers.getall("Set-Cookie") == [
            "last=7; Max-Age=60; Path=/; Secure; HttpOnly; SameSite=Lax",
            "cart=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/; Secure; HttpOnly; SameSite=Lax",
        ]
        assert headers["Content-Type"] == "application/json"
        assert len(headers["traceparent"]) == 55
    assert (await get(session, "/orders", "POST", json={"id": 1}))[0] == 200


async def test_a_caller_from_python_gets_the_body(till: Any) -> None:
    """And its type, when it asks for one; the answer as it travels has the head beside it."""
    m, _, _ = till
    assert await m.node.call("till.order", 7) == {"id": 7}
    assert await m.node.rpc[Till].order(7) == Order(7)
    assert await m.node.call("till.process") == "p"
    answer = await m.node.call_raw("till.order", b"[7]", JSON)
    assert http_head.from_meta(answer.meta).fields[0] == ("Location", "/orders/7")
    assert (await m.node.call_raw("till.either", b'["plain"]', JSON)).meta is None


async def test_a_plain_value_and_answers_without_a_body(till: Any) -> None:
    """204 and 304 have no body; HEAD has the fields of GET."""
    _, session, _ = till
    status, headers, body = await get(session, "/either/plain")
    assert (status, body) == (200, b'{"id":1}')
    status, headers, body = await get(session, "/either/none")
    assert (status, body, headers.get("Content-Length"), headers.get("Content-Type")) == (204, b"", None, None)
    status, headers, body = await get(session, "/either/same")
    assert (status, body, headers["ETag"]) == (304, b"", '"v1"')
    status, headers, body = await get(session, "/either/teapot")
    assert (status, body) == (418, b'{"id":418}')
    status, headers, body = await get(session, "/picture", "HEAD")
    assert (status, body, headers["Content-Length"], headers["Cache-Control"]) == (200, b"", "6", "max-age=60")
    assert (await get(session, "/either/other"))[::2] == (200, b"null")


async def test_redirects_and_types(till: Any) -> None:
    """A redirect has no body; Content-Type replaces that of the route, and MessagePack is given to those who ask."""
    _, session, _ = till
    status, headers, body = await get(session, "/old")
    assert (status, headers["Location"], body, headers.get("Content-Type")) == (308, "/new?x=%20", b"", None)
    status, headers, body = await get(session, "/picture")
    assert (headers["Content-Type"], body) == ("image/svg+xml", b"<svg/>")
    status, headers, body = await get(
        session, "/orders", "POST", json={"id": 7}, headers={"Accept": "application/msgpack"}
    )
    assert (status, msgspec.msgpack.decode(body), headers["Location"]) == (201, {"id": 7}, "/orders/7")


async def test_from_threads_and_processes(till: Any) -> None:
    """The head comes with the body."""
    _, session, _ = till
    status, headers, body = await get(session, "/thread")
    assert (status, headers["X-From"], body) == (200, "thread", b'"t"')
    status, headers, body = await get(session, "/process")
    assert (status, headers["X-From"], body) == (202, "process", b'"p"')


async def test_what_a_handler_may_not_send_is_its_failure(till: Any) -> None:
    """A line break from the client, a body of the wrong type, and a Response that the annotation does not promise."""
    _, session, _ = till
    status, headers, body = await get(session, "/injected?text=a%0d%0aX-Evil:%201")
    assert (status, "X-Evil" in headers) == (500, False)
    for path, verb, options in (
        ("/orders", "POST", {"json": {"id": 7, "wrong": True}}),
        ("/unpromised", "GET", {}),
    ):
        status, headers, body = await get(session, path, verb, **options)
        assert (status, msgspec.json.decode(body)["code"]) == (500, "bad_result")


async def test_the_openapi_document_has_the_statuses(till: Any) -> None:
    """Those of the decorator, with the body's schema at the usual one."""
    _, _, gateway = till
    document = msgspec.json.decode(gateway.openapi())
    validate(document, cls=OpenAPIV31SpecValidator)
    responses = document["paths"]["/orders"]["post"]["responses"]
    assert responses["201"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Order"}
    assert responses["200"]["description"] == "It was there already."
    assert responses["201"]["description"] == "It is new."
    assert responses["404"] == {"$ref": "#/components/responses/Problem404", "description": "No such item."}


@pytest.mark.parametrize(
    "name",
    ["Content-Length", "transfer-encoding", "Connection", "Keep-Alive", "Upgrade", "TE", "traceparent", "X-Request-Id",
     "Date", "Server", "Set-Cookie", "Access-Control-Allow-Origin", "a b", "", "X:", "X\r\nY"],
)  # fmt: skip
def test_header_fields_of_the_gateway_and_malformed_names_are_refused(name: str) -> None:
    """Whatever their case."""
    with pytest.raises(ValueError, match="header field"):
        http.Response(None, headers={name: "x"})


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\0b", "ä", " a", "a ", "\x7f", 7])
def test_values_that_could_begin_another_line_are_refused(value: Any) -> None:
    """Only printable ASCII."""
    with pytest.raises(ValueError, match="X-A"):
        http.Response(None, headers={"X-A": value})
    with pytest.raises(ValueError, match="Location"):
        http.redirect(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: http.Response(None, status=199),
        lambda: http.Response(None, status=600),
        lambda: http.Response(None, status="200"),  # type: ignore[arg-type]
        lambda: http.Response("x", status=204),
        lambda: http.Response("x", status=304),
        lambda: http.Response(None, status=303),
        lambda: http.redirect("/x", status=200),
        lambda: http.Response(None, headers={"X-A": "a" * 9000}),
        lambda: http.SetCookie(name="a b"),
        lambda: http.SetCookie(name="a", value="x;y"),
        lambda: http.SetCookie(name="a", value="ä"),
        lambda: http.SetCookie(name="a", value="a\r\nb"),
        lambda: http.SetCookie(name="a", max_age_s=1.5),  # type: ignore[arg-type]
        lambda: http.SetCookie(name="a", expires_at=datetime(2030, 1, 1)),
        lambda: http.SetCookie(name="a", path="x"),
        lambda: http.SetCookie(name="a", path="/;x"),
        lambda: http.SetCookie(name="a", domain=".shop.example"),
        lambda: http.SetCookie(name="a", domain="shop example"),
        lambda: http.SetCookie(name="a", same_site="no"),  # type: ignore[arg-type]
        lambda: http.SetCookie(name="a", same_site="none", secure=False),
        lambda: http.SetCookie(name="__Host-a", domain="shop.example"),
        lambda: http.SetCookie(name="__Secure-a", secure=False),
    ],
)
def test_what_contradicts_http_is_refused_where_it_is_written(make: Any) -> None:
    """In the handler, so that its log shows the line."""
    with pytest.raises(ValueError, match=r"."):
        make()


def test_a_cookie_has_the_attributes_that_it_is_given() -> None:
    """In the form of RFC 6265."""
    cookie = http.SetCookie(
        name="s", value="v", expires_at=datetime(2030, 1, 31, 12, tzinfo=UTC), path="/a", domain="shop.example",
        secure=False, http_only=False, same_site="strict",
    )  # fmt: skip
    told = cookie.header()
    assert told == "s=v; Expires=Thu, 31 Jan 2030 12:00:00 GMT; Path=/a; Domain=shop.example; SameSite=Strict"


@pytest.mark.parametrize(
    "meta",
    [
        {http_head.STATUS: "100"},
        {http_head.STATUS: "20000"},
        {http_head.STATUS: "x"},
        {http_head.HEADERS: "{"},
        {http_head.HEADERS: '[["X-A"]]'},
        {http_head.HEADERS: '[["X-A","a\\r\\nb"]]'},
        {http_head.HEADERS: '[["Set-Cookie","a\\nb"]]'},
        {http_head.HEADERS: '[["Content-Length","7"]]'},
        {http_head.HEADERS: '[["X A","7"]]'},
    ],
)
def test_a_gateway_checks_what_a_worker_sends(meta: dict[str, str]) -> None:
    """The worker is another process, and may be of another release."""
    with pytest.raises(BadReply):
        to_reply(Answer(b"1", JSON, meta))


def test_annotations_promise_the_body() -> None:
    """The schema, the checks and typed callers see this type."""
    assert unwrapped(http.Response[Order]) == (Order, True)
    assert unwrapped(Order | http.Response[Order]) == (Order, True)
    assert unwrapped(Order | None | http.Response[Order]) == (Order | None, True)
    assert unwrapped(http.Response) == (Any, True)
    assert unwrapped(int | str) == (int | str, False)


def test_streams_and_tasks_cannot_have_one() -> None:
    """A stream has the head of its route, and a task no request that waits for it."""

    class Streams(mesh.Service):
        @http.get("/x")
        async def method(self) -> AsyncIterator[http.Response[int]]:
            yield http.Response(1)

    class Tasks(mesh.Service):
        @mesh.task
        async def method(self) -> http.Response[int]:
            return http.Response(1)

    for cls in (Streams, Tasks):
        with pytest.raises(BadDeclaration, match=r"\.method"):
            record(cls, id="1", epoch=1)


async def test_a_fake_answers_with_one_too() -> None:
    """A test's fake of such a service returns what the service would."""

    class Caller(mesh.Service):
        @mesh.rpc
        async def ask(self) -> Any:
            return await self.call("till.order", 7)

    fake = Fake(Till)
    fake.does(order=lambda id, wrong=False: http.Response(Order(id), status=200))
    async with Mesh(Caller, fake) as m:
        assert await m.node.call("caller.ask") == {"id": 7}

"""Requests and answers over a real socket."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from gateway_front import Front, eventually
from gateway_shop import open_shop

from mesh.protocol.messages import JSON, MSGPACK, RAW

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def shop(front: Front) -> Front:
    open_shop(front.node)
    return front


# --- routes ---------------------------------------------------------------------------------------


async def test_a_route_is_answered_with_the_workers_json(shop: Front) -> None:
    """The simplest request: a name in the path, JSON back, as one call that may be repeated."""
    told = await shop.get("/hello/J%C3%BCrg%20x")
    assert (told.status, told.kind, told.json) == (200, "application/json", "Hello, Jürg x!")
    call = shop.node.calls[0]
    assert (call["target"], call["encoding"], call["idempotent"]) == ("shop.hello", JSON, True)
    assert call["timeout"] == 5.0


async def test_a_route_that_appears_later_is_served_at_once(front: Front) -> None:
    """The registry is followed live; a service that goes keeps its routes and waits for its return."""
    assert (await front.get("/hello/x")).status == 404
    instance = open_shop(front.node)
    assert (await front.get("/hello/x")).status == 200
    front.node.leave(instance.id)
    assert (await front.get("/hello/x")).status == 200


async def test_query_and_body_are_bound_by_type(shop: Front) -> None:
    """Query values are converted; a structured body goes to its parameter; the status is the route's."""
    assert (await shop.get("/search?q=a%20b&limit=3")).json == {"q": "a b", "limit": 3}
    told = await shop.post("/items", b'{"name": "bread", "price": 3.5, "to": {"street": "x"}}')
    assert told.status == 201
    assert told.json["to"] == {"street": "x", "city": "Bern"}
    assert (await shop.ask("PATCH", "/items/7", json={"name": "y"})).json == {"id": 7, "name": "y"}
    told = await shop.ask("DELETE", "/items/7")
    assert (told.status, told.body) == (204, b"")
    assert "Content-Length" not in told.headers


@pytest.mark.parametrize(
    ("verb", "path", "body", "place"),
    [
        ("GET", "/search?limit=many", b"", "query.limit"),
        ("POST", "/items", b'{"name": "x", "price": -1}', "body.price"),
        ("POST", "/items", b'{"name": "x", "price": 1, "to": {"street": 5}}', "body.to.street"),
        ("PATCH", "/items/x", b'{"name": "x"}', "path.id"),
        ("PATCH", "/items/1", b'{"name": 5}', "body.name"),
        ("PATCH", "/items/1", b'{"name": ', "body"),
        ("POST", "/rpc/shop/hello", b'{"name": 5}', "body.name"),
        ("POST", "/rpc/shop/hello", b'{"nome": "x"}', "body.nome"),
        ("POST", "/rpc/shop/hello", b"[5]", "body.name"),
    ],
)
async def test_a_wrong_field_is_400_with_its_path(shop: Front, verb: str, path: str, body: bytes, place: str) -> None:
    """Whether the gateway or the worker finds it, the client reads where in its request it is."""
    told = await shop.ask(verb, path, data=body, headers={"Content-Type": "application/json"})
    assert (told.status, told.kind) == (400, "application/problem+json")
    assert (told.json["code"], told.json["details"]["path"]) == ("bad_arguments", place)


async def test_other_verbs_are_405_and_options_tells_which(shop: Front) -> None:
    """Allow comes with both."""
    told = await shop.post("/hello/x")
    assert (told.status, told.headers["Allow"], told.json["code"]) == (405, "GET, HEAD, OPTIONS", "method_not_allowed")
    told = await shop.ask("OPTIONS", "/items/1")
    assert (told.status, told.headers["Allow"]) == (204, "PATCH, DELETE, OPTIONS")
    assert (await shop.get("/rpc/shop/hello")).headers["Allow"] == "POST, OPTIONS"
    assert (await shop.post("/livez")).headers["Allow"] == "GET, HEAD, OPTIONS"


async def test_head_is_get_without_the_body(shop: Front) -> None:
    """With the length that the body would have, and the connection stays usable."""
    told = await shop.ask("HEAD", "/hello/x")
    assert (told.status, told.body, told.headers["Content-Length"]) == (200, b"", "11")
    assert (await shop.get("/hello/x")).json == "Hello, x!"


async def test_text_of_a_route_that_produces_text_is_the_text_itself(shop: Front) -> None:
    """Not a JSON string of it."""
    told = await shop.get("/page")
    assert (told.kind, told.body.decode()) == ("text/html; charset=utf-8", "<h1>grüezi</h1>")


async def test_bytes_go_in_and_out_without_json(shop: Front) -> None:
    """In a MessagePack call beside other arguments, alone as they are; back with the route's type."""
    told = await shop.post("/shrink?width=2", b"\xff\x00\x01", "image/jpeg")
    assert (told.kind, told.body) == ("image/png", b"\xff\x00")
    assert shop.node.calls[-1]["encoding"] == MSGPACK
    assert (await shop.post("/measure", b"\xff\x00", "application/octet-stream")).json == 2
    assert shop.node.calls[-1]["encoding"] == RAW
    assert (await shop.post("/rpc/shop/measure", b"\xff\x00\x01", "image/png")).json == 3
    told = await shop.post("/rpc/shop/shrink?width=1", b"\xff\x00", "image/png")
    assert (told.kind, told.body) == ("application/octet-stream", b"\xff")


async def test_a_large_body_comes_and_goes_whole(shop: Front) -> None:
    """Beyond what is written in one piece."""
    data = bytes(range(256)) * 250
    told = await shop.post(f"/shrink?width={len(data)}", data, "image/jpeg")
    assert told.body == data


# --- /rpc -----------------------------------------------------------------------------------------


async def test_rpc_takes_an_object_an_array_or_nothing(shop: Front) -> None:
    """Named arguments, positional ones, and no body at all."""
    assert (await shop.post("/rpc/shop/hello", b'{"name": "a"}')).json == "Hello, a!"
    assert (await shop.post("/rpc/shop/hello", b'["b"]')).json == "Hello, b!"
    assert (await shop.post("/rpc/shop/search")).json == {"q": "", "limit": 10}
    assert shop.node.calls[-1]["idempotent"] is None


@pytest.mark.parametrize(
    ("path", "code", "hint"),
    [
        ("/rpc/shap/hello", "unknown_service", '"shop"?'),
        ("/rpc/shop/hallo", "unknown_method", '"hello"?'),
        ("/rpc/$worker/metrics", "unknown_service", ""),
        ("/rpc/shop", "unknown_route", "/rpc/SERVICE/METHOD"),
        ("/rpc/shop/hello/x", "unknown_route", ""),
        ("/nothing/here", "unknown_route", "/mesh"),
    ],
)
async def test_unknown_names_are_404_each_with_its_code(shop: Front, path: str, code: str, hint: str) -> None:
    """Service, method and route are told apart, and the nearest name is offered."""
    told = await shop.post(path)
    assert (told.status, told.json["code"]) == (404, code)
    assert hint in told.json["detail"]


async def test_messagepack_is_spoken_when_asked_for(shop: Front) -> None:
    """In by Content-Type, out by Accept; each without the other."""
    body = msgspec.msgpack.encode({"name": "a"})
    assert (await shop.post("/rpc/shop/hello", body, "application/msgpack")).json == "Hello, a!"
    told = await shop.post("/rpc/shop/hello", b'["a"]', Accept="application/msgpack")
    assert (told.kind, msgspec.msgpack.decode(told.body)) == ("application/msgpack", "Hello, a!")


# --- problems -------------------------------------------------------------------------------------


async def test_a_handlers_error_has_its_own_status_and_code(shop: Front) -> None:
    """RFC 9457 members, the service's code and details, and the trace to look for in the logs."""
    told = await shop.post("/rpc/shop/sells_out", traceparent=TRACE)
    assert told.status == 409
    assert told.json == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "nothing is left",
        "code": "out_of_stock",
        "retryable": False,
        "details": {"item": "bread"},
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }


async def test_overload_says_when_to_come_back(shop: Front) -> None:
    """503 with Retry-After in whole seconds, rounded up."""
    told = await shop.post("/rpc/shop/is_full")
    assert (told.status, told.headers["Retry-After"], told.json["retryable"]) == (503, "3", True)


async def test_what_nobody_foresaw_is_500_without_its_inside(shop: Front) -> None:
    """The log has it; the client does not. The gateway goes on."""

    async def broken(*args: object, **kwargs: object) -> None:
        raise KeyError("secret")

    shop.node.call_raw = broken  # type: ignore[method-assign, assignment]
    told = await shop.get("/hello/x", headers={"traceparent": TRACE})
    assert (told.status, told.json["code"]) == (500, "internal_error")
    assert b"secret" not in told.body
    assert told.headers["traceparent"] == TRACE
    assert (await shop.get("/livez")).status == 200


async def test_routes_are_not_called_unknown_before_a_hub_has_told(front: Front) -> None:
    """A gateway that has just started does not take its own ignorance for an answer."""
    fresh = type(front.node.table)()
    front.node.table, front.gateway.front._certain = fresh, False
    told = await front.get("/hello/x")
    assert (told.status, told.headers["Retry-After"]) == (503, "1")
    assert (await front.post("/rpc/shop/hello")).status == 503


async def test_the_deadline_of_the_request_is_that_of_the_call(shop: Front) -> None:
    """X-Request-Timeout in any of its spellings; past it 504."""
    for text, seconds in (("2", 2.0), ("0.25", 0.25), ("250ms", 0.25), ("1.5s", 1.5), ("1m", 60.0)):
        await shop.get("/hello/x", headers={"X-Request-Timeout": text})
        assert shop.node.calls[-1]["timeout"] == seconds
    told = await shop.get("/sleeps", headers={"X-Request-Timeout": "20ms"})
    assert (told.status, told.json["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("text", ["", "soon", "-1", "0", "1h", "nan", "1e9", "99999999999", "2 2"])
async def test_a_timeout_that_is_none_is_400(shop: Front, text: str) -> None:
    """With the header's name as the path."""
    told = await shop.get("/hello/x", headers={"X-Request-Timeout": text})
    assert (told.status, told.json["details"]["path"]) == (400, "header.X-Request-Timeout")


async def test_a_trace_goes_through_and_comes_back(shop: Front) -> None:
    """A valid one as it is; an invalid one is as good as none, and then there is a new one."""
    told = await shop.get("/hello/x", headers={"traceparent": TRACE})
    assert told.headers["traceparent"] == TRACE == shop.node.calls[-1]["trace"]
    told = await shop.get("/hello/x", headers={"traceparent": "00-nonsense"})
    assert told.headers["traceparent"] == shop.node.calls[-1]["trace"] != "00-nonsense"


async def test_a_request_id_comes_back(shop: Front) -> None:
    """On answers and problems; what is no id is not echoed."""
    for path in ("/hello/x", "/nothing", "/livez"):
        assert (await shop.get(path, headers={"X-Request-Id": "a-1"})).headers["X-Request-Id"] == "a-1"
    assert "X-Request-Id" not in (await shop.get("/hello/x", headers={"X-Request-Id": "x" * 200})).headers


# --- clients that misbehave -----------------------------------------------------------------------


async def test_a_body_past_the_limit_is_413_before_it_is_read(shop: Front) -> None:
    """By its announced length, or while it comes in chunks; the connection is closed, the gateway goes on."""
    told = await shop.post("/measure", b"x" * (64 * 1024 + 1))
    assert (told.status, told.json["details"]) == (413, {"limit_bytes": 65536})

    async def chunks():  # type: ignore[no-untyped-def]
        for _ in range(70):
            yield b"x" * 1024

    assert (await shop.ask("POST", "/measure", data=chunks())).status == 413
    assert (await shop.get("/hello/x")).status == 200


async def test_a_client_that_asks_first_is_told_to_go_on(shop: Front) -> None:
    """curl waits a second for 100 Continue before a large body; one that is too large is refused instead."""
    head = b"POST /measure HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    reader, writer = await shop.raw(head % 3)
    assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
    writer.write(b"abc")
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n3")
    reader, _ = await shop.raw(head % 10**9)
    assert b"413" in await reader.readline()


async def test_a_slow_body_is_given_up_within_the_requests_time(shop: Front) -> None:
    """408, so that a client that stalls holds nothing for ever."""
    reader, _ = await shop.raw(
        b"POST /measure HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nX-Request-Timeout: 30ms\r\n\r\nab"
    )
    assert b"408" in await reader.readline()


async def test_a_client_that_leaves_cancels_its_call(shop: Front) -> None:
    """What nobody waits for is not done."""
    _, writer = await shop.raw(b"GET /sleeps HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await eventually(lambda: shop.node.calls, "the call began")
    writer.close()
    await eventually(lambda: shop.node.cancelled == ["shop.sleeps"], "the call was cancelled")
    await eventually(lambda: not shop.gateway.connections.busy, "nothing is in hand")
    sample = next(each for each in shop.node.recorder.snapshot()["methods"] if each["method"] == "sleeps")
    assert (sample["in_flight"], sample["errors"]) == (0, {"cancelled": 1})


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 4096,
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n",
        b"POST /measure HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /measure HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /measure HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_garbage_on_the_port_harms_nobody(shop: Front, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is answered 400 or cut, and fills no log; others are served."""
    reader, writer = await shop.raw(garbage)
    writer.write_eof()
    async with asyncio.timeout(5):
        told = await reader.read()
    assert told == b"" or told.startswith(b"HTTP/1.")
    assert b" 200 " not in told
    assert b" 500 " not in told
    assert not caplog.records
    assert (await shop.get("/hello/x")).status == 200


@pytest.mark.parametrize("target", [b"http://localhost/hello/y?z=1", b"/hello/y#frag", b"*"])
async def test_odd_request_targets_are_understood_or_refused(shop: Front, target: bytes) -> None:
    """The absolute form of a proxy is the path; nothing is an internal error."""
    reader, _ = await shop.raw(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
    told = await reader.read()
    assert told.split()[1] in (b"200", b"400", b"404")
    if target.startswith(b"http:"):
        assert told.endswith(b'"Hello, y!"')


async def test_old_and_closing_clients_get_what_they_asked_for(shop: Front) -> None:
    """HTTP/1.0 closes unless it asks otherwise; HTTP/1.1 stays unless it asks otherwise."""
    reader, _ = await shop.raw(b"GET /hello/x HTTP/1.0\r\n\r\n")
    assert b"Connection: close" in await reader.read()
    reader, writer = await shop.raw(b"GET /hello/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"Connection: keep-alive" in await reader.readuntil(b'x!"')
    writer.write(b"GET /hello/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b"Connection: close" in await reader.read()


async def test_pipelined_requests_are_answered_in_order(shop: Front) -> None:
    """Two requests in one packet, two answers."""
    one = b"GET /hello/%b HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reader, _ = await shop.raw(one % b"a" + one % b"b")
    told = await reader.readuntil(b'b!"')
    assert told.index(b"a!") < told.index(b"b!")


async def test_requests_are_counted_by_method_and_outcome(shop: Front) -> None:
    """On the side "http", with their errors by code."""
    await shop.get("/hello/x")
    await shop.get("/search?limit=x")
    samples = {each["method"]: each for each in shop.node.recorder.snapshot()["methods"] if each["side"] == "http"}
    assert (samples["hello"]["count"], samples["hello"]["errors"]) == (1, {})
    assert samples["search"]["errors"] == {"bad_arguments": 1}


async def test_the_date_is_that_of_the_second(shop: Front) -> None:
    """HTTP wants a Date, and caches believe it."""
    from email.utils import parsedate_to_datetime

    told = await shop.get("/livez")
    assert abs(parsedate_to_datetime(told.headers["Date"]).timestamp() - time.time()) < 3

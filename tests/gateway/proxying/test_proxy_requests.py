"""Proxy routes: what reaches the upstream server, and which routes come first."""

from __future__ import annotations

import msgspec
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front
from gateway_shop import open_shop
from proxy_upstream import Open, Upstream, headers_of

from mesh.gateway.mounts import BadMount

# --- what the upstream gets ---------------------------------------------------------------------


async def test_a_request_arrives_as_it_was_sent(proxy: Front) -> None:
    told = await proxy.ask("PATCH", "/old/a%20b;v=1//c?x=%2F&y", data=b"body", headers={"X-Own": "grüezi"})
    assert told.status == 200
    assert (told.json["method"], told.json["target"], told.json["body"]) == (
        "PATCH",
        "/old/a%20b;v=1//c?x=%2F&y",
        "body",
    )
    headers = headers_of(told)
    assert headers["x-own"] == ["grüezi".encode().decode("latin-1")]
    assert headers["content-length"] == ["4"]
    assert headers["host"] == [f"127.0.0.1:{proxy.address[1]}"]
    assert "accept-encoding" in headers  # the client's own


async def test_the_prefix_may_be_removed(proxy: Front, upstream: Upstream) -> None:
    told = await proxy.get("/cut/a?b=c")
    assert told.json["target"] == "/a?b=c"
    headers = headers_of(told)
    assert headers["x-forwarded-prefix"] == ["/cut"]
    assert headers["host"] == [upstream.url.removeprefix("http://")]
    assert (await proxy.get("/cut")).json["target"] == "/"


async def test_fields_of_the_connection_end_at_the_gateway(proxy: Front) -> None:
    """Those of RFC 9110, and those that Connection lists."""
    reader, _ = await proxy.raw(
        b"GET /old/x HTTP/1.1\r\nHost: localhost\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Authorization: Basic eDp5\r\nProxy-Connection: keep-alive\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nTrailer: X-T\r\nX-Stays: 1\r\n\r\n"
    )
    _, _, body = (await reader.read()).partition(b"\r\n\r\n")
    names = {name.lower() for name, _ in msgspec.json.decode(body)["headers"]}
    assert "x-stays" in names
    assert not names & {
        "x-hop", "te", "keep-alive", "proxy-authorization", "proxy-connection", "upgrade", "http2-settings", "trailer",
        "transfer-encoding", "connection",
    }  # fmt: skip


async def test_a_client_cannot_claim_to_be_another(proxy: Front) -> None:
    """Under no spelling, unless it is a proxy of `gateway.proxies`."""
    forged = {
        "X-Forwarded-For": "6.6.6.6",
        "X_Forwarded_For": "6.6.6.6",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=6.6.6.6;proto=https",
        "X-Real-IP": "6.6.6.6",
        "X-Forwarded-Prefix": "/evil",
        "X-Forwarded-Port": "1",
    }
    headers = headers_of(await proxy.get("/old/x", headers=forged))
    host = f"127.0.0.1:{proxy.address[1]}"
    assert headers["x-forwarded-for"] == ["127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["http"]
    assert headers["x-forwarded-host"] == [host]
    assert headers["forwarded"] == [f'for=127.0.0.1;proto=http;host="{host}"']
    assert not headers.keys() & {"x_forwarded_for", "x-real-ip", "x-forwarded-prefix", "x-forwarded-port"}


async def test_a_trusted_proxy_is_believed(opened: Open, upstream: Upstream) -> None:
    front = await opened({"/old": upstream.url}, proxies=["127.0.0.1"])
    told = {"X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https", "Forwarded": "for=9.9.9.9"}
    headers = headers_of(await front.get("/old/x", headers=told))
    assert headers["x-forwarded-for"] == ["9.9.9.9, 127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["https"]
    assert headers["forwarded"][0].startswith("for=9.9.9.9, for=127.0.0.1;")


async def test_the_trace_goes_on_in_a_span_of_its_own(proxy: Front) -> None:
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    sent = {"traceparent": parent, "tracestate": "x=1", "X-Request-Id": "req-1", "X-Request-Timeout": "3"}
    headers = headers_of(await proxy.get("/old/x", headers=sent))
    assert headers["traceparent"][0].startswith(parent[:36])
    assert headers["traceparent"] != [parent]
    assert (headers["tracestate"], headers["x-request-id"]) == (["x=1"], ["req-1"])
    assert 0 < int(headers["x-request-timeout"][0].removesuffix("ms")) <= 3000
    headers = headers_of(await proxy.get("/old/x", headers={"tracestate": "x=1"}))
    assert "tracestate" not in headers
    assert len(headers["x-request-id"][0]) == 32


@pytest.mark.parametrize(
    "path",
    [
        "/old/../x", "/old/%2e%2e/x", "/old/.%2E/x", "/old/..%2fx", "/old/a%2f..%2f..%2fx", "/old/..%5cx", "/old/..\\x",
        "/old/./x", "/old/..;/x", "/old/%00", "/old/%ff",
    ],
)  # fmt: skip
async def test_no_path_leaves_the_prefix(proxy: Front, upstream: Upstream, path: str) -> None:
    """However the upstream would decode and normalize it."""
    reader, _ = await proxy.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read())[9:12] == b"400"
    assert upstream.requests == []


@pytest.mark.parametrize("verb", ["TRACE", "CONNECT"])
async def test_methods_that_are_not_forwarded(proxy: Front, upstream: Upstream, verb: str) -> None:
    reader, _ = await proxy.raw(f"{verb} /old/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read())[9:12] in (b"405", b"400", b"404")
    assert upstream.requests == []


SMUGGLED = b"GET /old/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % (5 + len(SMUGGLED)), b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n", b"abc"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Transfer-Encoding:\x0bchunked\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"X: 1\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
        (b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(SMUGGLED), SMUGGLED),
        (b"Content-Length: +0\r\n", SMUGGLED),
        (b"Content-Length: 0x0\r\n", SMUGGLED),
        (b"Content-Length: -1\r\n", SMUGGLED),
        (b"Content-Length: 3\r\n Transfer-Encoding: chunked\r\n", b"abc"),
        (b"Transfer-Encoding: chunked\r\n", b"0x3\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"3\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nabcX0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"-3\r\nabc\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    ],
)
async def test_no_request_is_smuggled(proxy: Front, upstream: Upstream, lines: bytes, body: bytes) -> None:
    """What the gateway does not refuse is framed anew: the upstream never sees more requests than the gateway has."""
    reader, writer = await proxy.raw(b"POST /old/digest HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n" + body)
    writer.write_eof()
    told = await reader.read()
    answers = told.count(b"HTTP/1.1 ") - told.count(b"HTTP/1.1 100 ")
    paths = [request.path for request in upstream.requests]
    assert len(paths) <= answers
    for request in upstream.requests:
        framing = [name for name, _ in request.raw_headers if name.lower() in (b"content-length", b"transfer-encoding")]
        assert len(framing) <= 1


# --- precedence ---------------------------------------------------------------------------------


async def test_the_root_gets_what_nothing_else_answers(opened: Open, upstream: Upstream, node: FakeNode) -> None:
    open_shop(node)
    front = await opened({"/": upstream.url})
    assert (await front.get("/anything?x")).json["target"] == "/anything?x"
    assert (await front.get("/")).json["target"] == "/"
    assert (await front.ask("OPTIONS", "/anything")).json["method"] == "OPTIONS"
    assert (await front.get("/livez")).status == 200
    reader, _ = await front.raw(b"GET * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert (await reader.read())[9:12] == b"400"
    upstream.requests.clear()
    assert (await front.post("/measure", b"abc", "image/png")).json == 3
    assert upstream.requests == []


async def test_prefixes_that_overlap_are_refused(opened: Open, upstream: Upstream) -> None:
    for proxy in ({"/a": upstream.url, "/a/b": upstream.url}, {"/mesh": upstream.url}):
        with pytest.raises(BadMount):
            await opened(proxy)

"""Forwarding for other sources of addresses, and its pure parts."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gateway_front import Front, eventually
from proxy_upstream import Open, Upstream, headers_of, serving

from mesh.config import load
from mesh.config.edge_proxy import PROXIES
from mesh.errors import ConfigError
from mesh.gateway.edge import registry
from mesh.gateway.edge.contract import Concern
from mesh.gateway.edge.identity import Identity
from mesh.gateway.forward_headers import rewrite_cookie, rewrite_location
from mesh.gateway.forwarding import Forwarder
from mesh.gateway.mounts import Mount, Request
from mesh.gateway.mounts.serving import serve_counted
from mesh.gateway.upstreams import Upstreams

# --- for other sources of addresses -------------------------------------------------------------


async def test_the_list_of_servers_may_change(proxy: Front, upstream: Upstream, stack: AsyncExitStack) -> None:
    """What is running ends at its server; what comes next goes to the new ones."""
    other = Upstream()
    await stack.enter_async_context(serving(other))
    settings = PROXIES.read({"/": upstream.url})["/"]
    upstreams = Upstreams([upstream.url], settings, asyncio.get_running_loop().time)
    forwarder = Forwarder(proxy.gateway.front, upstreams, settings)
    mount = Mount(prefix="/dynamic", handler=forwarder.forward, methods=())
    proxy.gateway.mounts._add(mount, "test", serve_counted(proxy.gateway.front, mount))
    running = asyncio.create_task(proxy.get("/dynamic/wait"))
    await eventually(lambda: upstream.requests, "it is running")
    old = upstreams.all[0]
    await upstreams.replace([other.url])
    assert (await proxy.get("/dynamic/x")).status == 200
    assert [request.path for request in other.requests] == ["/dynamic/x"]
    upstream.gate.set()
    assert (await running).body == b"waited"
    await eventually(lambda: old._session is None, "its connections are closed")
    await upstreams.replace([])
    told = await proxy.get("/dynamic/x")
    assert (told.status, told.json["code"]) == (503, "unavailable")
    await upstreams.close()


async def test_the_authenticated_caller_is_told(
    opened: Open, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only under the configured name, and never as the client says."""

    async def hook(request: Request, proceed: Any) -> Any:
        assert request.entry.policy.auth == "user"
        request.identity = (
            Identity(request.headers["Authorization"], "jwt") if "Authorization" in request.headers else None
        )
        return await proceed(request)

    monkeypatch.setattr(registry, "CONCERNS", (lambda front: Concern(name="auth", hook=hook),))
    front = await opened({"/old": {"to": upstream.url, "principal": "X-User", "auth": "user"}})
    for sent, told in (("anna@example.org", "anna@example.org"), ("ü %", "%C3%BC%20%25")):
        claims = {"X-User": "root", "X_User": "root", "Authorization": sent}
        headers = headers_of(await front.get("/old/x", headers=claims))
        assert (headers["x-user"], "x_user" in headers) == ([told], False)
    assert "x-user" not in headers_of(await front.get("/old/x", headers={"X-User": "root"}))


async def test_no_field_is_invented(proxy: Front) -> None:
    reader, _ = await proxy.raw(b"GET /old/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    _, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert {name.lower() for name, _ in msgspec.json.decode(body)["headers"]} == {
        "host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "traceparent", "x-request-id",
    }  # fmt: skip


async def test_a_server_cannot_split_an_answer(opened: Open) -> None:
    """Fields that aiohttp's lenient parser lets in do not get out."""
    odd = b"X-Good: 1\r\nX Bad: 1\r\nX-Ctl: a\x01b\r\nX-Fold: a\r\n b\r\nX(): 1\r\n"

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\n"
            + odd
            + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    async with server:
        front = await opened({"/old": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        reader, _ = await front.raw(b"GET /old/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 502 "):
        return
    framing = [
        line for line in head.lower().split(b"\r\n") if line.startswith((b"content-length", b"transfer-encoding"))
    ]
    assert len(framing) == 1
    assert b"X Bad" not in head
    assert b"\x01" not in head
    assert b"ok" in body


# --- pure parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "prefix", "expected"),
    [
        (b"http://a:1/x", "", b"/x"),
        (b"http://a:1", "/p", b"/p/"),
        (b"http://a:1?q", "/p", b"/p/?q"),
        (b"http://a:12/x", "/p", b"http://a:12/x"),
        (b"/x", "/p", b"/p/x"),
        (b"//evil/x", "/p", b"//evil/x"),
        (b"x", "/p", b"x"),
        (b"https://other/", "/p", b"https://other/"),
    ],
)
def test_locations(value: bytes, prefix: str, expected: bytes) -> None:
    assert rewrite_location(value, "http://a:1", prefix) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a=1; Domain=x; Path=/a; Secure", b"a=1; Path=/p/a; Secure"),
        (b"domain=1; path=/", b"domain=1; Path=/p"),
        (b"a=1", b"a=1"),
    ],
)
def test_cookies(value: bytes, expected: bytes) -> None:
    assert rewrite_cookie(value, "/p") == expected


@pytest.mark.parametrize(
    "value",
    [
        {"old": "http://a"},
        {"/old": "ftp://a"},
        {"/old": "http://a/?x"},
        {"/old": "http://user@a"},
        {"/old": []},
        {"/old": {"strip": True}},
        {"/old": {"to": "http://a", "stripe": True}},
        {"/old": {"to": "http://a", "timeout": 3}},
        {"/a/../b": "http://a"},
        {"/old/": "http://a"},
        "nothing",
        3,
    ],
)
def test_wrong_settings_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^(it |$)"):
        PROXIES.read(value)


def test_settings_are_read_from_the_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text(
        """[gateway.static]
"/" = "web/dist"
[gateway.proxy]
"/old" = { to = ["http://127.0.0.1:1", "http+unix:/run/x"], timeout = "3s", max_body = "1GiB" }
"/new" = "http://[::1]:9000/base"
"""
    )
    gateway = load(file, env={}).gateway
    assert gateway.static["/"].dir == Path("web/dist")
    assert (gateway.proxy["/old"].timeout_s, gateway.proxy["/old"].max_body_bytes) == (3.0, 2**30)
    assert gateway.proxy["/new"].to == ["http://[::1]:9000/base"]
    gateway = load(file, env={"MESH_GATEWAY_PROXY": "/env=http://a"}).gateway
    assert list(gateway.proxy) == ["/env"]
    file.write_text('[gateway]\nport = 1\n[gateway.proxy]\n"/old" = { to = "http://a", timeuot = "3s" }\n')
    with pytest.raises(ConfigError) as error:
        load(file, env={})
    assert "mesh.toml:3: gateway.proxy" in error.value.message
    assert "timeout" in error.value.message


def test_settings_are_shown_as_they_are_written() -> None:
    value = {"/a": ["http://a"], "/b": {"to": ["http+unix:/x"], "strip": True, "timeout": "3s"}}
    assert PROXIES.show(PROXIES.read(value)) == value
    assert PROXIES.read("/a=http://a,/b=http://b")["/b"].to == ["http://b"]

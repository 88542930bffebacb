"""Security headers: on every answer by one switch, and never instead of those that an answer sets itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gateway_browser import BINARY, browser
from gateway_fakes import FakeNode
from gateway_front import Front
from gateway_shop import open_shop

import mesh
from mesh import http
from mesh.calls.http_response import Response
from mesh.config import GatewaySettings, MeshSettings, Settings
from mesh.config.edge_protect import CompressionSettings, HeaderSettings
from mesh.discovery.record import RouteRecord
from mesh.errors import ConfigError
from mesh.gateway import app
from mesh.gateway.mounts import Mount, Reply, Request, Stream
from mesh.gateway.mounts.external import External
from mesh.gateway.server import Gateway
from mesh.testing import Mesh

NAMES = {
    "Content-Security-Policy",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "Referrer-Policy",
    "Permissions-Policy",
    "Cross-Origin-Opener-Policy",
    "Cross-Origin-Resource-Policy",
}


def with_headers(settings: Settings, **values: Any) -> Settings:
    headers = HeaderSettings(**values)
    return msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, headers=headers))


async def test_they_are_off_by_default(front: Front) -> None:
    open_shop(front.node)
    assert not NAMES & set((await front.get("/hello/x")).headers)
    assert (await front.get("/mesh")).json["edge"] == []
    assert "default-src 'none'" in (await front.get("/docs")).headers["Content-Security-Policy"]


class TestSecure:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return with_headers(settings, secure=True, frame_options="sameorigin", extra=["X-Robots-Tag: noindex", "X-A:b"])

    @pytest.mark.parametrize("path", ["/hello/x", "/nowhere", "/count/3", "/page", "/mesh", "/livez", "/docs"])
    async def test_every_answer_has_each_field_once(self, front: Front, path: str) -> None:
        open_shop(front.node)
        told = await front.get(path)
        assert set(told.headers) >= NAMES
        assert all(len(told.headers.getall(name)) == 1 for name in NAMES)
        assert told.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert (told.headers["X-Robots-Tag"], told.headers["X-A"]) == ("noindex", "b")

    async def test_an_answer_keeps_its_own(self, front: Front) -> None:
        async def framed() -> Response[str]:
            return Response("x", headers={"X-Frame-Options": "ALLOWALL", "content-security-policy": "default-src *"})

        front.node.serve("shop", [RouteRecord("GET", "/framed", "framed", produces="text/html")], framed=framed)
        told = await front.get("/framed")
        assert told.headers.getall("X-Frame-Options") == ["ALLOWALL"]
        assert told.headers.getall("Content-Security-Policy") == ["default-src *"]
        assert "default-src 'none'" in (await front.get("/docs")).headers["Content-Security-Policy"]


async def test_a_stream_keeps_its_own(node: FakeNode, settings: Settings) -> None:
    async def items() -> AsyncIterator[bytes]:
        yield b"x"

    async def answer(request: Request) -> Stream | Reply:
        return Stream(items(), "text/html", headers={"Content-Security-Policy": "sandbox"})

    mount = External(Mount(prefix="/s", handler=answer), "test")
    gateway = Gateway(node, with_headers(settings, secure=True), [mount])
    server = gateway.make_server()
    listener = app.bind("127.0.0.1", 0)
    accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET /s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head = (await reader.read()).partition(b"\r\n\r\n")[0]
    assert head.count(b"Content-Security-Policy: ") == 1
    assert b"Content-Security-Policy: sandbox" in head
    assert b"Referrer-Policy: " in head
    writer.close()
    accepting.close()
    await server.shutdown(0.2)


async def test_a_field_can_be_left_out(node: FakeNode, settings: Settings) -> None:
    off = dict.fromkeys(
        (
            "content_security_policy",
            "frame_options",
            "referrer_policy",
            "permissions_policy",
            "opener_policy",
            "resource_policy",
        ),
        "off",
    )
    concern = Gateway(node, with_headers(settings, secure=True, **off)).front.concerns[0]
    assert concern.hook.__self__._names == {b"x-content-type-options"}


@pytest.mark.parametrize(
    "values",
    [
        {"extra": ["no colon"]},
        {"extra": ["X-A: b\r\nSet-Cookie: c"]},
        {"extra": ["Content-Length: 3"]},
        {"extra": ["Access-Control-Allow-Origin: *"]},
        {"extra": ["X A: b"]},
        {"secure": True, "referrer_policy": "a\nb"},
    ],
)
async def test_a_wrong_field_is_found_at_the_start(node: FakeNode, settings: Settings, values: Any) -> None:
    with pytest.raises(ConfigError):
        Gateway(node, with_headers(settings, **values))


# --- in a browser -------------------------------------------------------------------------------------


class Shop(mesh.Service):
    @http.get("/hello/{name}")
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"

    @http.get("/shop", produces="text/html")
    async def page(self) -> str:
        return "<title>shop</title><script>document.title = 'inline'</script>"


@pytest.mark.skipif(BINARY is None, reason="chromium is not installed: apt install chromium")
async def test_the_documentation_works_with_all_of_it_on(tmp_path: Path) -> None:
    """Its own policy applies; an inline script of a service's page does not run."""
    gateway = GatewaySettings(
        port=0,
        etag=True,
        headers=HeaderSettings(secure=True),
        compression=CompressionSettings(codings=["zstd", "br", "gzip"]),
    )
    settings = Settings(mesh=MeshSettings(name="shop", run_dir=tmp_path), gateway=gateway)
    async with Mesh(Shop) as m:
        server = Gateway(m.node, settings).make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with browser() as b:
                await b.open(f"{url}/docs")
                await b.until("document.querySelectorAll('.opblock').length > 1")
                assert b.complaints == []
                await b.ask("Page.navigate", url=f"{url}/shop")
                await b.until("document.title === 'shop'")
                assert any("Content Security Policy" in each for each in b.complaints)
        finally:
            accepting.close()
            await server.shutdown(0.2)

"""The documentation page in a real browser, and how its files are served."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from gateway_browser import BINARY, browser
from gateway_front import Front

import mesh
from mesh import http, rpc, task
from mesh.config import GatewaySettings, MeshSettings, Settings
from mesh.gateway import app
from mesh.gateway.mounts.docs import PAGES
from mesh.gateway.server import Gateway
from mesh.testing import Mesh

needs_chromium = pytest.mark.skipif(BINARY is None, reason="chromium is not installed: apt install chromium")

VIEWER = [path for path in PAGES if "/viewer-" in path]


# --- how it is served ---------------------------------------------------------------------------------


async def test_the_viewer_may_be_kept_and_comes_compressed(front: Front):
    """Its address has its version, so a browser never asks for it again; the types are those that it checks."""
    assert len(VIEWER) == 2
    for path in VIEWER:
        packed = await front.get(path, headers={"Accept-Encoding": "gzip"})
        plain = await front.get(path, headers={"Accept-Encoding": "identity"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert int(packed.headers["Content-Length"]) < 0.4 * int(plain.headers["Content-Length"])
        assert packed.body == plain.body  # the client has decompressed it
        assert "Content-Encoding" not in plain.headers
        for told in (packed, plain):
            assert told.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            assert told.headers["Vary"] == "Accept-Encoding"
            assert told.headers["X-Content-Type-Options"] == "nosniff"
        assert packed.kind == ("text/javascript" if path.endswith(".js") else "text/css") + "; charset=utf-8"


async def test_own_files_are_asked_for_again(front: Front):
    for path in ("/docs", "/docs/docs.js", "/docs/docs.css"):
        told = await front.get(path)
        assert (told.status, told.headers["Cache-Control"]) == (200, "no-cache")


@pytest.mark.parametrize(
    ("header", "packed"),
    [("gzip", True), ("br;q=1, gzip;q=0.5", True), ("*", True), ("gzip;q=0", False), ("br", False), ("", False)],
)
async def test_compression_follows_the_request(front: Front, header: str, packed: bool):
    head = f"GET {VIEWER[0]} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: {header}\r\nConnection: close\r\n\r\n"
    reader, writer = await front.raw(head.encode())
    told, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert (b"Content-Encoding: gzip" in told) is packed
    assert b".swagger-ui" in (gzip.decompress(body) if packed else body)
    writer.close()


async def test_a_strange_host_gets_no_page(front: Front):
    """The same check as for every other address: a page elsewhere cannot read it by a name of its own."""
    for path in ("/docs", *VIEWER):
        told = await front.get(path, headers={"Host": "evil.example"})
        assert told.status == 421


# --- in a browser -------------------------------------------------------------------------------------


class Order(msgspec.Struct):
    id: int
    sizes: list[str] = []


class Shop(mesh.Service):
    """Sells things."""

    expose = True

    @http.get("/hello/{name}")
    @rpc
    async def hello(self, name: str, times: int = 1) -> str:
        """Greet somebody by name."""
        return ", ".join([f"Hello, {name}!"] * times)

    @http.post("/orders")
    @rpc
    async def order(self, order: Order) -> Order:
        """Place an order."""
        return order

    @http.get("/count/{n}")
    @rpc
    async def count(self, n: int) -> AsyncIterator[int]:
        """Count from 0."""
        for number in range(n):
            yield number

    @rpc
    async def secret(self) -> int:
        """Only below /rpc."""
        return 7

    @task(expose=True)
    async def pack(self, order: int) -> None:
        """Pack an order."""


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[str]:
    """The address of the page of a gateway in front of a mesh with a shop."""
    settings = Settings(mesh=MeshSettings(name="shop", run_dir=tmp_path), gateway=GatewaySettings(port=0))
    async with Mesh(Shop) as m:
        server = Gateway(m.node, settings).make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/docs"
        finally:
            accepting.close()
            await server.shutdown(0.2)


SUMMARIES = "[...document.querySelectorAll('.opblock-summary-path')].map(each => each.dataset.path)"


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400], ids=["wide", "narrow"])
async def test_the_page_shows_every_operation_once(page: str, tmp_path: Path, width: int, dark: bool):
    """In the system's colours, without scrolling sideways, and without a complaint of the browser."""
    async with browser() as b:
        await b.open(page, width=width, dark=dark)
        await b.until("document.querySelectorAll('.opblock').length > 4")
        paths = await b.run(SUMMARIES)
        assert sorted(paths) == sorted(
            [
                "/hello/{name}",
                "/orders",
                "/count/{n}",
                "/rpc/shop/secret",
                "/tasks/shop/pack",
                "/jobs/{id}",
                "/jobs/{id}",
            ]
        ) or set(paths) >= {"/hello/{name}", "/orders", "/count/{n}", "/rpc/shop/secret", "/tasks/shop/pack"}
        assert "/rpc/shop/hello" not in paths
        assert await b.run("document.title") == "shop · mesh"
        ground = await b.run("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(28, 32, 34)" if dark else "rgb(255, 255, 255)")
        assert await b.run("document.documentElement.scrollWidth <= innerWidth")
        await b.screenshot(tmp_path / "page.png")
        assert b.complaints == []


def fill(operation: str, values: dict[str, str]) -> str:
    """A script that opens an operation, and fills and sends its form, as a person does."""
    return f"""(async () => {{
      const block = [...document.querySelectorAll('.opblock')].find(
        each => each.querySelector('.opblock-summary-path').dataset.path === {operation!r});
      block.querySelector('.opblock-summary-control').click();
      const wait = () => new Promise(done => setTimeout(done, 50));
      while (!block.querySelector('.btn.execute')) await wait();
      for (const [name, value] of Object.entries({values!r})) {{
        const field = name === 'body' ? block.querySelector('textarea')
          : block.querySelector(`tr[data-param-name="${{name}}"] input`);
        const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), 'value').set;
        field.focus();
        set.call(field, value);
        field.dispatchEvent(new Event('input', {{ bubbles: true }}));
        field.blur();
        await wait();
      }}
      block.querySelector('.btn.execute').click();
      while (!block.querySelector('.live-responses-table .response-col_status')) await wait();
      return [block.querySelector('.live-responses-table tbody .response-col_status').textContent.trim().slice(0, 3),
        block.querySelector('.live-responses-table .highlight-code, .live-responses-table pre').textContent];
    }})()"""


@needs_chromium
@pytest.mark.parametrize(
    ("operation", "values", "status", "body"),
    [
        ("/hello/{name}", {"name": "ujun", "times": "2"}, "200", "Hello, ujun!, Hello, ujun!"),
        ("/orders", {"body": '{"id": 7, "sizes": ["s"]}'}, "200", '"id": 7'),
        ("/orders", {"body": '{"id": "x"}'}, "400", "bad_arguments"),
        ("/rpc/shop/secret", {}, "200", "7"),
        ("/count/{n}", {"n": "3"}, "200", "2"),
        ("/tasks/shop/pack", {"body": '{"order": 7}'}, "202", "/jobs/"),
    ],
)
async def test_an_operation_can_be_tried(page: str, operation: str, values: dict[str, str], status: str, body: str):
    """Its form is filled in and sent, and the service's answer is shown."""
    async with browser() as b:
        await b.open(page)
        await b.until("document.querySelectorAll('.opblock').length > 4")
        shown, text = await b.run(fill(operation, values))
        assert shown == status
        assert body in text
        assert [each for each in b.complaints if "status of 400" not in each] == []


@needs_chromium
async def test_a_document_that_cannot_be_read_is_reported(page: str):
    """Instead of an empty page."""
    async with browser() as b:
        await b.ask("Page.enable")
        script = "window.fetch = () => Promise.reject(new Error('gone'))"
        await b.ask("Page.addScriptToEvaluateOnNewDocument", source=script)
        await b.open(page)
        await b.until("document.querySelector('#main')?.textContent.includes('could not be built')")


async def test_the_page_names_the_viewer_that_is_installed(front: Front):
    found = re.findall(r'(?:href|src)="(/docs/viewer[^"]*)"', (await front.get("/docs")).body.decode())
    assert sorted(found) == sorted(VIEWER)

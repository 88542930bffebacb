"""Litestar and Django as services, behind a real gateway; see test_asgi for what every application gets."""

from __future__ import annotations

import gc
import io
from collections.abc import AsyncIterator

import aiohttp
import pytest

import mesh
from mesh.apps.loading import make
from mesh.testing import Mesh
from tests.apps import more_sites
from tests.gateway.gateway_served import Served, served
from tests.patience import until

pytestmark = [
    pytest.mark.timeout(60),
    # A framework may leave the files of a request to the collector; this is no matter of mesh. `web` collects them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Greeter(mesh.Service):
    @mesh.rpc
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"


Star = make(more_sites.litestar, "star", prefixes=("/star",))
New = make(more_sites.django_asgi, "new", prefixes=("/new",))
Old = make(more_sites.django_wsgi, "old", "wsgi", prefixes=("/old",))

DJANGO = pytest.mark.parametrize(("route", "target"), [("/new", "new.asgi"), ("/old", "old.asgi")])


@pytest.fixture
async def web() -> AsyncIterator[Served]:
    more_sites.EVENTS.clear()
    async with (
        Mesh(Star, New, Old, Greeter, transport="ipc", settings={"log": {"level": "error"}}) as m,
        served(m) as web,
    ):
        await until(lambda: len(web.gateway.catalog.offers) >= 4)
        yield web
    gc.collect()


def file_of(size: int) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("title", "A")
    form.add_field("file", io.BytesIO(bytes(size)), filename="a.bin")
    return form


async def test_litestar(web: Served):
    assert more_sites.EVENTS == ["startup"]
    async with web.http.get("/star/items/7?q=a%20b") as answer:
        assert await answer.json() == {"id": 7, "q": "a b", "target": "star.asgi"}
    async with web.http.get("/star/items/x") as answer:
        assert answer.status == 404
    async with web.http.get("/star/link") as answer:
        assert await answer.text() == f"{web.url}/star/items/7"
    async with web.http.get("/star/elsewhere") as answer:
        assert (answer.status, (await answer.json())["id"]) == (200, 1)
    async with web.http.post("/star/upload", data=file_of(300_000)) as answer:
        assert (answer.status, await answer.json()) == (201, {"name": "a.bin", "size": 300_000})
    async with web.http.get("/star/stream/1000") as answer:
        assert (await answer.text()).splitlines() == [str(n) for n in range(1000)]
    async with web.http.get("/star/fails") as answer:
        assert answer.status == 500
    async with web.http.get("/star/call") as answer:
        assert await answer.text() == "Hello, you!"
    async with web.http.ws_connect("/star/ws") as ws:
        for text in ("one", "two"):
            await ws.send_str(text)
            assert await ws.receive_str() == text.upper()
    async with web.http.get("/star/schema/openapi.json") as answer:
        assert "/items/{id}" in (await answer.json(content_type=None))["paths"]


@DJANGO
async def test_django(web: Served, route: str, target: str):
    async with web.http.get(f"{route}/items/7?q=a%20b") as answer:
        assert await answer.json() == {"id": 7, "q": "a b", "target": target}
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    async with web.http.get(f"{route}/async/7") as answer:
        assert (await answer.json())["id"] == 7
    async with web.http.get(f"{route}/where") as answer:
        assert await answer.text() == f"{web.url}{route}/items/7 127.0.0.1"
    async with web.http.get(f"{route}/elsewhere") as answer:
        assert (answer.status, (await answer.json())["id"]) == (200, 1)
    async with web.http.post(f"{route}/upload", data=file_of(3_000_000)) as answer:
        assert await answer.json() == {"name": "a.bin", "size": 3_000_000, "title": "A"}
    async with web.http.get(f"{route}/stream/1000") as answer:
        assert (await answer.text()).splitlines() == [str(n) for n in range(1000)]
    for path in ("fails", "none"):
        async with web.http.get(f"{route}/{path}") as answer:
            assert answer.status == (500 if path == "fails" else 404)


@DJANGO
async def test_sessions_and_csrf_of_django(web: Served, route: str, target: str):
    """Its cookies pass both ways, and so does its refusal."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(web.url, cookie_jar=jar) as browser:
        async with browser.get(f"{route}/form") as answer:
            assert await answer.text() == "a guest"
            token = answer.cookies["csrftoken"].value
        async with browser.post(f"{route}/form", data={"name": "ann"}) as answer:
            assert answer.status == 403
        async with browser.post(f"{route}/form", data={"name": "ann", "csrfmiddlewaretoken": token}) as answer:
            assert (answer.status, await answer.text()) == (200, "ann")
        async with browser.get(f"{route}/form") as answer:
            assert await answer.text() == "ann"

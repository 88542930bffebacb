"""HTML forms sent by a real browser: its own encoding, a page of another site, and the documentation page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from aiohttp import web as aio
from gateway_browser import BINARY, browser

import mesh
from mesh import http
from mesh.testing import Mesh, no_leaks
from tests.gateway.gateway_served import Served, served
from tests.patience import until

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(BINARY is None, reason="no Chromium is installed: apt-get install chromium"),
]

PAGE = """<!doctype html><html><head><link rel="icon" href="data:,"></head><body>
<form action="ACTION" method="post" enctype="multipart/form-data">
<input name="title" value='"Ä" & \\'
><input name="public" type="checkbox" checked><input name="hidden" type="checkbox">
<input name="photo" type="file"><input name="extra" type="file"><button></button></form></body></html>"""

#: Choose a file, as a person does, and submit.
SUBMIT = """(() => {
  const chosen = new DataTransfer();
  chosen.items.add(new File([new Uint8Array(70000).fill(65)], 'Fotö "1".png', { type: 'image/png' }));
  document.querySelector('input[name=photo]').files = chosen.files;
  document.querySelector('button').click();
})()"""


class Photos(mesh.Service):
    def __init__(self) -> None:
        self.added = 0

    @http.get("/page", produces="text/html")
    async def page(self) -> str:
        return PAGE.replace("ACTION", "/photos")

    @http.post("/photos")
    async def add(
        self,
        title: Annotated[str, http.Form],
        photo: http.File,
        public: Annotated[bool, http.Form] = False,
        hidden: Annotated[bool, http.Form] = False,
        extra: http.File | None = None,
    ) -> list[Any]:
        self.added += 1
        data = await photo.read()
        return [title, photo.filename, photo.content_type, data.count(b"A"), photo.size, public, hidden, extra is None]


@pytest.fixture
async def mesh_() -> AsyncIterator[Mesh]:
    async with no_leaks(), Mesh(Photos, transport="ipc", settings={"log": {"level": "error"}}) as m:
        yield m


@pytest.fixture
async def web(mesh_: Mesh) -> AsyncIterator[Served]:
    async with served(mesh_) as web:
        await until(lambda: web.gateway.catalog.offers)
        yield web


async def test_a_browser_sends_a_form(web: Served):
    async with browser() as b:
        await b.open(f"{web.url}/page")
        await b.until("document.querySelector('button') && document.readyState === 'complete'")
        await b.run(SUBMIT)
        shown = await b.until("location.pathname === '/photos' && JSON.parse(document.body.innerText)")
        assert shown == ['"Ä" & \\', "Fotö %221%22.png", "image/png", 70000, 70000, True, False, True]
        # The page that shows the answer is JSON, and names no icon.
        assert [each for each in b.complaints if not each.endswith("/favicon.ico")] == []


async def test_a_page_of_another_site_is_refused(web: Served, mesh_: Mesh):
    async def evil(request: aio.Request) -> aio.Response:
        return aio.Response(text=PAGE.replace("ACTION", f"{web.url}/photos"), content_type="text/html")

    application = aio.Application()
    application.router.add_get("/", evil)
    runner = aio.AppRunner(application)
    await runner.setup()
    try:
        site = aio.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with browser() as b:
            await b.open(f"http://localhost:{port}/")
            await b.until("document.querySelector('button') && document.readyState === 'complete'")
            await b.run(SUBMIT)
            shown = await b.until("location.pathname === '/photos' && JSON.parse(document.body.innerText)")
            assert (shown["status"], shown["code"]) == (403, "cross_site")
    finally:
        await runner.cleanup()
    (photos,) = mesh_.instances(Photos)
    assert photos.added == 0


async def test_the_documentation_page_uploads(web: Served):
    async with browser() as b:
        await b.open(f"{web.url}/docs")
        await b.until("document.querySelectorAll('.opblock').length > 1")
        status, text = await b.run("""(async () => {
          const block = [...document.querySelectorAll('.opblock')].find(
            each => each.querySelector('.opblock-summary-path').dataset.path === '/photos');
          block.querySelector('.opblock-summary-control').click();
          const wait = () => new Promise(done => setTimeout(done, 50));
          while (!block.querySelector('.btn.execute')) await wait();
          while (!block.querySelector('input[type=file]')) await wait();
          const title = block.querySelector('tr[data-property-name="title"] input');
          const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(title), 'value').set;
          title.focus();
          set.call(title, 'From the page');
          title.dispatchEvent(new Event('input', { bubbles: true }));
          title.blur();
          await wait();
          const chosen = new DataTransfer();
          chosen.items.add(new File(['AAA'], 'a.png', { type: 'image/png' }));
          const file = block.querySelector('input[type=file]');
          file.files = chosen.files;
          file.dispatchEvent(new Event('change', { bubbles: true }));
          await wait();
          block.querySelector('.btn.execute').click();
          while (!block.querySelector('.live-responses-table .response-col_status')) await wait();
          const shown = block.querySelector('.live-responses-table');
          return [shown.querySelector('tbody .response-col_status').textContent.trim().slice(0, 3),
            shown.querySelector('.highlight-code, pre').textContent];
        })()""")
        assert status == "200", text
        assert '"a.png"' in text

"""docs/sessions.md: its complete example, run with its own mesh.toml; its page in a real browser."""

from __future__ import annotations

import asyncio
import re
import sys
import types
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import gateway_browser
import pytest
from gateway_browser import Browser, browser
from gateway_sessions import KEYS

from mesh import config
from mesh.gateway import app
from mesh.gateway.edge.registry import lifespans
from mesh.gateway.server import Gateway
from mesh.testing import Mesh

pytestmark = pytest.mark.timeout(120)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text()


@pytest.fixture
async def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    """The example behind a gateway."""
    [code] = re.findall(r"```python\n(# app\.py\n.*?)```", DOCUMENT, re.DOTALL)
    [toml] = re.findall(r"```toml sessions\n(.*?)```", DOCUMENT, re.DOTALL)
    module: Any = types.ModuleType("sessions_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "docs/sessions.md", "exec"), module.__dict__)
    monkeypatch.setenv("SESSION_KEY", KEYS["SESSION_KEY"])
    file = tmp_path / "mesh.toml"
    file.write_text(toml)
    settings = config.load(file, env={}, flags={"engines.default": "memory", "mesh.run_dir": str(tmp_path)})
    async with AsyncExitStack() as stack:
        m = await stack.enter_async_context(Mesh(module.Users, module.Shop))
        gateway = Gateway(m.node, settings)  # type: ignore[arg-type]
        await stack.enter_async_context(lifespans(gateway.front))
        server = gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        yield f"http://localhost:{listener.getsockname()[1]}"
        accepting.close()
        await server.shutdown(0.2)


async def test_the_example_logs_in_orders_and_logs_out(url: str):
    async with aiohttp.ClientSession() as client:

        async def ask(verb: str, path: str, **options: Any) -> Any:
            tokens = [each.value for each in client.cookie_jar if each.key == "session_csrf"]
            headers = {"X-CSRF-Token": tokens[0]} if tokens else {}
            async with client.request(verb, url + path, headers=headers, **options) as answer:
                told = await answer.json() if answer.status != 204 else None
                return told.get("code") if isinstance(told, dict) else told

        assert await ask("GET", "/me") == "unauthenticated"
        assert await ask("POST", "/login", json={"name": "ann", "password": "wrong"}) == "unauthenticated"
        assert await ask("POST", "/login", json={"name": "bob", "password": "correct horse"}) == "unauthenticated"
        assert await ask("POST", "/login", json={"name": "ann", "password": "correct horse"}) == "ann"
        assert await ask("GET", "/me") == "ann"
        assert await ask("POST", "/orders", json={"item": "tea"}) == "1: tea for ann"
        assert await ask("POST", "/logout", json={}) is None
        assert await ask("GET", "/me") == "unauthenticated"


async def said(page: Browser, text: str) -> None:
    await page.until(f"document.getElementById('said')?.textContent === {text!r}")


@pytest.mark.skipif(gateway_browser.BINARY is None, reason="there is no Chromium")
async def test_its_page_works_in_a_browser(url: str):
    """With the cookies and the origins of requests as Chromium has them; a page of another site gets nothing."""
    async with browser() as page:
        await page.open(f"{url}/shop")
        await said(page, "You are not logged in")
        await page.run("document.getElementById('order').click()")
        await said(page, "unauthenticated")
        await page.run("document.getElementsByName('name')[0].value = 'ann'")
        await page.run("document.getElementsByName('password')[0].value = 'correct horse'")
        await page.run("document.getElementById('login').requestSubmit()")
        await said(page, "You are ann")
        # Scripts see the token, and not the session.
        assert re.fullmatch(r"session_csrf=\S+", await page.run("document.cookie"))
        await page.run("document.getElementById('order').click()")
        await said(page, "Order 1: tea for ann")
        # The session outlives the page.
        await page.ask("Page.reload")
        await said(page, "You are ann")
        without = "fetch('/orders', {method: 'POST', body: '{}', headers: {'Content-Type': 'application/json'}})"
        assert await page.run(f"{without}.then((answer) => answer.json()).then((told) => told.code)") == "csrf"
        # A page of another site (127.0.0.1 is not localhost to a browser): neither reading, nor a form, nor a frame.
        other = url.replace("localhost", "127.0.0.1")
        await page.ask("Page.navigate", url=f"{other}/shop")
        await said(page, "You are not logged in")
        script = f"fetch('{url}/me', {{credentials: 'include', mode: 'no-cors'}}).then((answer) => answer.type)"
        assert await page.run(script) == "opaque"
        form = f"<form method=post action='{url}/orders' enctype=text/plain><input name=item value=tea></form>"
        await page.run(f"document.body.innerHTML = {form!r}; document.forms[0].submit()")
        await page.until("document.body.textContent.includes('cross_site')")
        # A link of the other site is followed with the session.
        await page.ask("Page.navigate", url=f"{other}/shop")
        await page.until("document.getElementById('said')?.textContent")
        await page.run(f"location.href = '{url}/shop'")
        await said(page, "You are ann")
        await page.run("document.getElementById('order').click()")
        await said(page, "Order 2: tea for ann")
        await page.run("document.getElementById('logout').click()")
        await said(page, "You are not logged in")
        assert await page.run("document.cookie") == ""

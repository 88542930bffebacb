"""A browser logs in, places orders, and sees them live, while each part of the set is restarted."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from supervision_project import Project

from tests.gateway import gateway_browser
from tests.supervision import browser_application

pytestmark = pytest.mark.timeout(180)

SETTINGS = """
[gateway]
port = {port}
replicas = 1
[gateway.static]
"/" = "web"
[auth]
mounts = {{ "/" = "none" }}
[auth.sessions]
keys = ["env:SESSION_KEY"]
login = ["users.login"]
[services.users]
class = "application:Users"
[services.orders]
class = "application:Orders"
"""


@pytest.mark.skipif(gateway_browser.BINARY is None, reason="there is no chromium")
def test_orders_are_seen_once_and_in_order_whatever_restarts(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over Server-Sent Events and over a WebSocket."""
    monkeypatch.setenv("SESSION_KEY", "0123456789abcdef" * 4)
    web = project.root / "web"
    web.mkdir()
    (web / "index.html").write_text(browser_application.PAGE)
    (web / "app.js").write_text(browser_application.SCRIPT)
    (project.root / "application.py").write_text(Path(browser_application.__file__).read_text())
    (project.root / "mesh.toml").write_text(SETTINGS.format(port=project.port))
    project.up()
    asyncio.run(_use(project))


async def _use(project: Project) -> None:
    async with gateway_browser.browser() as page:
        await page.open(f"http://localhost:{project.port}/index.html")
        await page.until("typeof login === 'function'")
        assert await page.run("login('ann', 'wrong')") == "unauthenticated"
        assert await page.run("login('ann', 'correct horse')") == ""
        await page.run("follow(); listen(); undefined")
        number = 0

        async def order(count: int) -> None:
            nonlocal number
            for _ in range(count):
                number += 1
                await page.run(f"order('order-{number}')")

        await order(10)
        for program in ("orders:*", "gateway:*", "store"):
            restarting = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "supervisor.supervisorctl",
                "restart",
                program,
                cwd=project.root,
                stdout=asyncio.subprocess.DEVNULL,
            )
            await order(15)
            assert await restarting.wait() == 0
        pids = project.pids()
        project.kill(pids["orders:orders_0"])
        await order(5)
        project.kill(pids["gateway:gateway_0"])
        await order(5)
        wanted = [f"order-{each}" for each in range(1, number + 1)]
        assert await page.run("placed.join()") == ",".join(wanted)
        for name in ("bySse", "bySocket"):
            await page.until(f"{name}.length >= {number}")
            assert (await page.run(f"{name}.join()")).split(",") == wanted, name
        assert await page.run("document.getElementById('who').textContent") == "ann"

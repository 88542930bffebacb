"""Real programs behind a real gateway: Flask, FastAPI over TCP and over a socket, Node, and a static binary."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from program_site import Site

APPS = Path(__file__).parent / "apps"
PYTHON = f'"{sys.executable}", "-m"'

COMMANDS = {
    "flask": f'command = [{PYTHON}, "flask", "--app", "flask_app", "run", "--host", "{{host}}", "--port", "{{port}}"]',
    "fastapi": f'command = [{PYTHON}, "uvicorn", "fastapi_app:app", "--host", "{{host}}", "--port", "{{port}}"]',
    "fastapi on a socket": f'command = [{PYTHON}, "uvicorn", "fastapi_app:app", "--uds", "{{socket}}"]\n'
    'http = "unix:{socket}"',
    "node": 'command = "node server.mjs"',
}


def needs(tool: str, variable: str) -> None:
    if shutil.which(tool) is None:
        if os.environ.get(variable):
            pytest.fail(f"{variable} is set, and there is no {tool}")
        pytest.skip(f"there is no {tool}")


@pytest.fixture(params=COMMANDS)
async def shop(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """A site with one of the applications, and a gateway."""
    if request.param == "node":
        needs("node", "MESH_REQUIRE_NODE")
    async with Site() as site:
        for path in APPS.iterdir():
            if path.is_file():
                shutil.copy(path, site.root)
        site.configure(f'{COMMANDS[request.param]}\nhealth = "/healthz"\nroute = "/shop"')
        await site.start_gateway()
        await site.start()
        await site.routed("/shop/hello/x")
        yield site


async def test_an_application_behind_the_gateway(shop: Site):
    """Its routes, its query and its header fields; bodies and answers pass in pieces; other paths are not its own."""
    async with aiohttp.ClientSession(shop.url) as session:
        headers = {"X-Request-Id": "r-1", "X-Forwarded-For": "9.9.9.9", "Connection": "X-Secret", "X-Secret": "1"}
        async with session.get("/shop/hello/m%C3%BCller?a=1&b=%2F", headers=headers) as answer:
            assert answer.status == 200
            assert answer.headers["X-Request-Id"] == "r-1"
            body = await answer.json()
            trace = answer.headers["traceparent"].split("-")[1]
        assert body["hello"] == "müller"
        assert body["query"] == {"a": "1", "b": "/"}
        got = {name.lower(): value for name, value in body["headers"].items()}
        assert got["traceparent"].split("-")[1] == trace
        assert got["x-request-id"] == "r-1"
        assert got["x-forwarded-for"] == "127.0.0.1"
        assert got["x-forwarded-proto"] == "http"
        assert "x-secret" not in got

        upload = os.urandom(300_000)

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(upload), 50_000):
                yield upload[at : at + 50_000]

        # In a piece with a length, and in chunks.
        for data in (upload, pieces()):
            async with session.post("/shop/echo", data=data, headers={"Content-Type": "x/y"}) as answer:
                assert answer.status == 200
                assert await answer.read() == upload

        loop = asyncio.get_running_loop()
        began, first = loop.time(), 0.0
        lines = b""
        async with session.get("/shop/count/10") as answer:
            async for chunk in answer.content.iter_any():
                first = first or loop.time()
                lines += chunk
        assert lines.split() == [str(number).encode() for number in range(10)]
        # The first line came before the last one was made.
        assert first - began < loop.time() - began - 0.2

        async with session.get("/shopping") as answer:
            assert answer.status in (404, 503)
        async with session.get("/healthz") as answer:
            assert answer.status in (404, 503)


async def test_websockets():
    """Both directions, through the gateway; a page of another site is refused."""
    async with Site() as site:
        shutil.copy(APPS / "fastapi_app.py", site.root)
        site.configure(f'{COMMANDS["fastapi"]}\nroute = "/shop"')
        await site.start_gateway()
        await site.start()
        await site.routed("/shop/hello/x")
        async with aiohttp.ClientSession(site.url) as session:
            async with session.ws_connect("/shop/chat") as socket:
                for text in ("one", "two" * 50_000):
                    await socket.send_str(text)
                    assert await socket.receive_str(timeout=10) == text.upper()
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect("/shop/chat", headers={"Origin": "https://evil.example"})
            assert caught.value.status == 403


def compiled(target: Path) -> None:
    needs("gcc", "MESH_REQUIRE_GCC")
    words = ["gcc", "-static", "-O1", "-o", str(target), str(APPS / "tiny.c")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"gcc cannot link statically here: {done.stderr[-200:]}")


async def test_a_static_binary():
    """A program that knows nothing but a port, and closes every connection."""
    async with Site() as site:
        compiled(site.root / "tiny")
        site.configure('command = "./tiny {port}"\nroute = "/shop"')
        await site.start_gateway()
        await site.start()
        await site.routed("/shop/hello/x")
        async with aiohttp.ClientSession(site.url) as session:
            for number in range(20):
                async with session.get(f"/shop/hello/{number}") as answer:
                    assert await answer.json() == {"hello": str(number)}


async def test_a_program_calls_the_mesh():
    """Through MESH_GATEWAY, and as a node by MESH_CONFIG."""
    async with Site() as site:
        shutil.copy(APPS / "calling_app.py", site.root)
        (site.root / "hello.py").write_text(
            "import mesh\nfrom mesh import rpc\n\n\nclass Greeting(mesh.Service):\n    @rpc(expose=True)\n"
            '    async def hello(self, name: str) -> str:\n        return f"Hello, {name}!"\n'
        )
        site.configure(f'{COMMANDS["fastapi"].replace("fastapi_app", "calling_app")}\nroute = "/shop"')
        await site.start_gateway()
        await site.run("run", "greeting.log", "hello.py")
        await site.start()
        await site.routed("/shop/connected")
        async with aiohttp.ClientSession(site.url) as session:
            for path, name in (("/shop/connected", "node"), ("/shop/over-http", "gateway")):
                async with session.get(path) as answer:
                    assert await answer.json() == f"Hello, {name}!"

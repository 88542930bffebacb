"""The whole way: HTTP to a gateway, ZeroMQ to a worker found through a hub, and back."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import pytest

from mesh import http, rpc
from mesh.clock import LoopClock
from mesh.config import GatewaySettings, MeshSettings, Settings
from mesh.discovery.hub import Hub
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.service.service import Service
from mesh.transport.zmq_transport import from_settings
from mesh.worker.worker import Worker


class Greeting(Service):
    """Says hello."""

    name = "greeting"
    expose = True

    @http.get("/hello/{name}")
    @rpc
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"

    @http.get("/count/{n}")
    @rpc
    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @http.post("/cut")
    @rpc
    async def cut(self, data: bytes, width: int = 2) -> bytes:
        return data[:width]

    @http.post("/native")
    @rpc(check_result=False)
    async def native(self, text: str) -> Any:
        return {
            1: text.encode(),
            "nan": math.nan,
            "nested": {"raw": [b"\0\xff"]},
            "when": datetime(2026, 11, 30, tzinfo=UTC),
            (1, 2): "tuple",
        }

    @rpc
    async def mean(self, data: bytes, width: int = 1) -> float | None:
        return math.nan if data else None

    @http.post("/native/process")
    @rpc(offload="process")
    def native_process(self, text: str) -> dict[int, bytes]:
        return {1: text.encode()}

    @http.post("/native/thread")
    @rpc(offload="thread")
    def native_thread(self, text: str) -> dict[int, bytes]:
        return {1: text.encode()}

    cancelled = False

    @rpc
    async def sleep(self) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            Greeting.cancelled = True
            raise


@pytest.fixture
async def url() -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        settings = Settings(mesh=MeshSettings(run_dir=Path(directory)), gateway=GatewaySettings(timeout_s=10.0))
        transport = from_settings(settings)
        hub = Hub(transport, LoopClock(), lease_s=5.0, identity="hub", epoch=1)
        await hub.start(settings.mesh.hubs[0])
        worker = Worker([Greeting], settings)
        await worker.start()
        node, _ = await app.connect_node(settings)
        await node.wait_for("greeting", timeout=20)
        server = Gateway(node, settings).make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        yield app.shown(listener)
        accepting.close()
        await server.shutdown(0.2)
        await node.close()
        await worker.stop()
        await hub.stop()
        await transport.close()


async def test_http_crosses_the_mesh_and_comes_back(url: str) -> None:
    """A call, a wrong call, bytes, a stream, metrics of the worker, and a client that leaves."""
    async with aiohttp.ClientSession(url) as session:
        async with asyncio.timeout(10):
            # The registry's news may come after the first request: until then it is 503, to be tried again.
            while True:
                async with session.get("/hello/x") as told:
                    if told.status != 503:
                        assert (told.status, await told.json()) == (200, "Hello, x!")
                        break
                await asyncio.sleep(0.02)
        async with session.post("/rpc/greeting/hello", json={"name": 5}) as told:
            problem = await told.json()
            assert (told.status, problem["details"]["path"]) == (400, "body.name")
        async with session.post("/cut?width=3", data=b"\xff\0\1\2") as told:
            assert (told.status, await told.read()) == (200, b"\xff\0\1")
        async with session.get("/count/3", headers={"Accept": "application/x-ndjson"}) as told:
            assert await told.read() == b"0\n1\n2\n"
        async with session.get("/metrics") as told:
            assert 'side="server"' in await told.text()
        with pytest.raises(asyncio.TimeoutError):
            await session.post("/rpc/greeting/sleep", timeout=aiohttp.ClientTimeout(total=0.2))
        async with asyncio.timeout(10):
            while not Greeting.cancelled:  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.01)


async def test_who_accepts_messagepack_gets_its_own_types(url: str) -> None:
    """Bytes, integer and tuple keys, NaN: none of them goes by way of JSON, whatever the arguments were in."""
    bodies = {"application/json": b'{"text": "x"}', "application/msgpack": msgpack.packb({"text": "x"})}
    async with aiohttp.ClientSession() as session:
        for kind, body in bodies.items():
            headers = {"Accept": "application/msgpack", "Content-Type": kind}
            async with session.post(f"{url}/native", data=body, headers=headers) as told:
                assert (told.status, told.content_type) == (200, "application/msgpack")
                value = msgpack.unpackb(await told.read(), strict_map_key=False, use_list=False)
            assert value[1] == b"x"
            assert math.isnan(value["nan"])
            assert value["nested"] == {"raw": (b"\0\xff",)}
            assert value[1, 2] == "tuple"


async def test_nan_is_no_null_when_the_arguments_were_bytes(url: str) -> None:
    """The worker answers in MessagePack then, which the gateway makes into JSON: NaN is refused there, too."""
    asked = f"{url}/rpc/greeting/mean?width=2"
    headers = {"Content-Type": "image/png"}
    async with aiohttp.ClientSession() as session:
        async with session.post(asked, data=b"x", headers=headers) as told:
            assert (told.status, (await told.json(content_type=None))["code"]) == (502, "bad_reply")
        async with session.post(asked, data=b"x", headers={**headers, "Accept": "application/msgpack"}) as told:
            assert math.isnan(msgpack.unpackb(await told.read()))
        async with session.post(
            asked, data=msgpack.packb([b""]), headers={"Content-Type": "application/msgpack"}
        ) as told:
            assert (told.status, await told.json()) == (200, None)


@pytest.mark.parametrize("path", ["/native/process", "/native/thread"])
async def test_what_is_offloaded_is_answered_in_messagepack_as_well(url: str, path: str) -> None:
    """The arguments stay JSON for the process that decodes them."""
    headers = {"Accept": "application/msgpack", "Content-Type": "application/json"}
    async with aiohttp.ClientSession() as session:
        async with session.post(url + path, data=b'{"text": "x"}', headers=headers) as told:
            assert told.status == 200
            assert msgpack.unpackb(await told.read(), strict_map_key=False) == {1: b"x"}
        async with session.post(url + path, json={"text": "x"}) as told:
            assert await told.json() == {"1": "eA=="}

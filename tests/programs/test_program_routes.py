"""The routes of programs at a gateway: which instances get requests, and what is answered when there are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from program_site import Site

from mesh.discovery.http_address import META
from mesh.discovery.record import Instance


async def asked(site: Site, path: str, verb: str = "GET") -> tuple[int, dict[str, str], bytes]:
    async with aiohttp.ClientSession() as session, session.request(verb, site.url + path) as answer:
        return answer.status, dict(answer.headers), await answer.read()


@asynccontextmanager
async def bystander() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that is no program of the mesh, such as a database: its port, and what it has received."""
    received: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readline())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], received


async def test_a_route_without_an_instance_and_a_path_without_a_route(site: Site):
    """503 with Retry-After; 404. `strip` and several prefixes."""
    site.configure('command = ["python3", "app.py"]\nroute = ["/shop", "/cart"]\nforward = { strip = true }')
    await site.start_gateway()
    status, headers, body = await asked(site, "/shop/x")
    assert status == 503
    assert headers["Retry-After"] == "1"
    assert msgspec.json.decode(body)["code"] == "unavailable"
    copy = await site.start()
    await site.routed("/shop/x")
    assert (await asked(site, "/shop/x?a=1"))[2] == b"/x?a=1"
    assert (await asked(site, "/cart"))[2] == b"/"
    assert (await asked(site, "/shops"))[0] in (404, 503)
    copy.process.kill()
    await copy.code()
    # Its record is still there.
    status, _, body = await asked(site, "/shop/x")
    assert (status, msgspec.json.decode(body)["code"]) in [(502, "bad_gateway"), (503, "unavailable")]


async def test_a_program_at_the_root_gets_what_no_route_has(site: Site):
    """`route = "/"`: the gateway's own pages stay, everything else is the program's."""
    site.configure('command = ["python3", "app.py"]\nroute = "/"')
    await site.start_gateway()
    await site.start()
    await site.routed("/anything")
    assert (await asked(site, "/"))[2] == b"/"
    assert msgspec.json.decode((await asked(site, "/mesh"))[2])["mesh"] == "mesh"


@pytest.mark.parametrize(
    "more",
    [
        '[services.other]\ncommand = "x"\nroute = "/shop/deep"',
        '[services.other]\ncommand = "x"\nroute = "/rpc"',
        '[gateway.proxy]\n"/shop" = "http://127.0.0.1:1"',
    ],
)
async def test_prefixes_that_conflict_keep_the_gateway_from_starting(site: Site, more: str):
    """The error names both."""
    site.configure('command = ["python3", "app.py"]\nroute = "/shop"', more)
    process = await site.run("gateway", "check.log", "--check", "--json")
    assert await process.wait() == 2
    error = msgspec.json.decode((site.root / "check.log").read_bytes().splitlines()[-1])["error"]
    assert error["code"] == "bad_mount"


async def test_a_record_alone_gets_no_requests(site: Site):
    """A process that registers addresses which are not its own: neither elsewhere, nor on loopback, nor as another."""
    site.configure('command = ["python3", "app.py"]\nroute = "/shop"')
    await site.start_gateway()
    await site.start()
    (honest,) = await site.ready()
    await site.routed("/shop/x")
    async with bystander() as (port, received):
        victim = f"http://127.0.0.1:{port}"
        node, host = site.node, site.settings.mesh.host
        own = {"service": "shop", "epoch": node.epoch, "worker": node.identity, "host": host}
        node.agent.register(
            # Without an endpoint; with one of another machine; with that of another process: it is not this worker.
            Instance(id="shop-1", meta={META: victim}, **own),
            Instance(id="shop-2", meta={META: victim}, endpoint="tcp://192.0.2.7:9000", **own),
            Instance(id="shop-3", meta={META: "http://192.0.2.7:80"}, endpoint=honest.endpoint, **own),
            Instance(id="shop-4", meta={META: victim}, endpoint=honest.endpoint, **own),
            Instance(id="shop-5", meta={META: victim}, endpoint=f"ipc://{site.root}/run/none.sock", **own),
            # All but the address is that of an honest worker.
            msgspec.structs.replace(honest, id="shop-6", meta={META: victim}),
        )
        await site.ready(7)
        gateway = site.root / "gateway.log"
        await site.until(lambda: gateway.read_text().count("program.address_refused") == 5, "they are refused")
        for _ in range(30):
            status, _, body = await asked(site, "/shop/x")
            assert (status, body) == (200, b"/shop/x")
        assert received == []

"""A program in a mesh over tcp with keys: only the process that `[access] serve` names may be it."""

from __future__ import annotations

import signal
import socket
import sys

import aiohttp
from program_site import Site

from mesh.discovery.http_address import META
from mesh.node.connect import connect


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_program_in_a_secure_mesh():
    """Its key is that of its service; `{host}` is the address of the worker. Another key cannot register as it."""
    site = Site()
    site.configure(
        f'command = ["{sys.executable}", "app.py"]\nhttp = "{{host}}:{{port}}"\nhealth = "/healthz"\nroute = "/shop"\n'
        "forward = { strip = true }",
        f'[mesh]\nbind = "tcp://127.0.0.1:*"\nhubs = ["tcp://127.0.0.1:{free_port()}"]\n[keys]\ndir = "keys"\n'
        '[[access.serve]]\nworker = "shop"\nservice = "shop"\n'
        '[[access.serve]]\nworker = "gateway"\nservice = "gateway"\n',
    )
    try:
        keys = await site.run("keys", "keys.log", "make", "hub", "gateway", "shop", "operator", "thief")
        assert await keys.wait() == 0
        await site.run("hub", "hub.log")
        await site.start_gateway()
        copy = await site.start()
        await site.routed("/shop/env")
        async with aiohttp.ClientSession() as session, session.get(f"{site.url}/shop/env") as answer:
            environment = await answer.json(content_type=None)
        async with connect(site.settings, role="operator", wait_s=10.0) as node:
            (instance,) = node.table.instances("shop")
            assert instance.endpoint.startswith("tcp://127.0.0.1:")
            assert instance.meta[META] == f"http://127.0.0.1:{environment['PORT']}"
            copy.send(signal.SIGTERM)
            assert await copy.code() == 0
            await site.until(lambda: not node.table.instances("shop"), "it has left")

            thief = await site.start(more={"MESH_KEYS_NAME": "thief"})
            await site.until(lambda: "forbidden" in thief.log, "it is refused")
            assert not node.table.instances("shop")
    finally:
        await site.clear()

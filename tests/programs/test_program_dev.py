"""`mesh dev` runs the programs of mesh.toml beside the classes, and ends them."""

from __future__ import annotations

import os
import signal

import aiohttp
import msgspec
from program_site import Copy, Site


async def test_mesh_dev_runs_programs():
    """One copy, behind the gateway of the same process; it is gone afterwards."""
    site = Site()
    site.configure('command = ["python3", "app.py"]\nroute = "/shop"\nhealth = "/healthz"')
    try:
        dev = Copy(await site.run("dev", "dev.log", "--no-reload", "--json"), site.root / "dev.log")
        await site.until(lambda: '"routes":' in dev.log or dev.process.returncode is not None, "it says that it runs")
        running = msgspec.json.decode(next(line for line in dev.log.splitlines() if '"routes":' in line))
        assert running["services"] == ["shop"]
        await site.routed("/shop/pid")
        async with aiohttp.ClientSession() as session, session.get(f"{site.url}/shop/x") as answer:
            assert await answer.read() == b"/shop/x"
        dev.send(signal.SIGINT)
        assert await dev.code() == 0
        await site.until(lambda: not _children(site), "its program is gone")
    finally:
        await site.clear()


def _children(site: Site) -> list[int]:
    """The processes that run in the directory of the site."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/cwd") == str(site.root):
                found.append(int(name))
        except OSError:
            continue
    return found

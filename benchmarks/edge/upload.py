"""An upload of 2 GB, or more, to a handler that hashes it, beside nginx in front of an aiohttp application."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

from benchmarks.edge.site import cpu_s, free_port, nginx, peak_kib, process, site

APP = """
import hashlib
from collections.abc import AsyncIterator
import mesh
from mesh import http

class Files(mesh.Service):
    @http.put("/files/{name}", max_body="8GiB")
    async def put(self, name: str, chunks: AsyncIterator[bytes]) -> str:
        digest = hashlib.sha256()
        async for chunk in chunks:
            digest.update(chunk)
        return digest.hexdigest()
"""
TOML = """
[gateway]
port = PORT
replicas = 1
[services.files]
class = "app:Files"
"""
AIOHTTP = """
import hashlib, sys
from aiohttp import web

async def put(request):
    digest = hashlib.sha256()
    async for chunk in request.content.iter_chunked(262144):
        digest.update(chunk)
    return web.Response(text=digest.hexdigest())

app = web.Application(client_max_size=1 << 40)
app.router.add_put("/files/{name}", put)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""
SIZE = (int(sys.argv[2]) if len(sys.argv) > 2 else 2) * 10**9
CHUNK = bytes(256 * 1024)


async def send(url: str, size: int) -> float:
    """Upload so many bytes; returns the seconds."""
    import aiohttp

    async def body() -> AsyncIterator[bytes]:
        left = size
        while left > 0:
            yield CHUNK[: min(left, len(CHUNK))]
            left -= len(CHUNK)

    began = time.perf_counter()
    limit = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=limit) as session, session.put(url, data=body()) as answer:
        assert answer.status == 200, await answer.text()
    return time.perf_counter() - began


async def measure() -> None:
    """Alternate both."""
    port, front = free_port(), free_port()
    with site(APP, TOML) as running:
        script = running.dir / "plain.py"
        script.write_text(AIOHTTP)
        (gateway,), (worker,) = running.pids("gateway"), running.pids("files")
        with process([sys.executable, str(script), str(port)], port), nginx(front, port):
            for url in (running.url, f"http://127.0.0.1:{front}"):
                await send(f"{url}/files/warm", 10**7)
            before = peak_kib(gateway), peak_kib(worker)
            used = cpu_s(gateway), cpu_s(worker)
            times: dict[str, list[float]] = {"mesh": [], "nginx": []}
            for _ in range(3):
                times["mesh"].append(await send(f"{running.url}/files/a", SIZE))
                times["nginx"].append(await send(f"http://127.0.0.1:{front}/files/a", SIZE))
            grown = peak_kib(gateway) - before[0], peak_kib(worker) - before[1]
            cpu = (cpu_s(gateway) - used[0]) / 3, (cpu_s(worker) - used[1]) / 3
    for name, taken in times.items():
        median = sorted(taken)[1]
        print(f"{name}: {median:.2f} s, {SIZE / median / 1e6:.0f} MB/s  {[round(each, 2) for each in taken]}")
    print(f"ratio of speeds: {sorted(times['nginx'])[1] / sorted(times['mesh'])[1]:.2f}")
    print(f"growth of the peak: gateway {grown[0] / 1024:.1f} MiB, worker {grown[1] / 1024:.1f} MiB")
    print(f"CPU per upload: gateway {cpu[0]:.2f} s, worker {cpu[1]:.2f} s")


def main() -> None:
    """Run it."""
    asyncio.run(measure())

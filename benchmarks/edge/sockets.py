"""10,000 idle WebSockets on one gateway: memory of each, and how long a message to all of them takes."""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.edge.site import memory_kib, site

APP = """
from collections.abc import AsyncIterator
import mesh
from mesh import http

class Room(mesh.Service):
    @http.websocket("/room", topics=["room.*"])
    async def room(self, messages: AsyncIterator[str]) -> AsyncIterator[str]:
        await http.join("room.all")
        yield "joined"
        async for _ in messages:
            pass

    @http.post("/say")
    async def say(self, text: str) -> None:
        await self.emit("room.all", text)
"""
TOML = """
[calls]
credit = 20000
[gateway]
port = PORT
replicas = 1
max_connections = 20000
[services.room]
class = "app:Room"
concurrency = 20000
"""
HANDSHAKE = (
    b"GET /room HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Browser(asyncio.Protocol):
    """A client that notes when the last message came."""

    def __init__(self, joined: asyncio.Future[None]) -> None:
        self.joined = joined
        self.seen = 0
        self.at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(HANDSHAKE)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if b"joined" in data and not self.joined.done():
            self.joined.set_result(None)
        self.seen += data.count(b"hello")
        self.at = time.perf_counter()


async def measure(count: int, rounds: int) -> None:
    """Open `count` connections and publish `rounds` messages."""
    import aiohttp

    with site(APP, TOML) as running:
        (gateway,) = running.pids("gateway")
        (worker,) = running.pids("room")
        loop = asyncio.get_running_loop()
        browsers: list[Browser] = []

        async def open_some(number: int) -> None:
            made = []
            for _ in range(number):
                joined: asyncio.Future[None] = loop.create_future()
                _, browser = await loop.create_connection(lambda j=joined: Browser(j), "127.0.0.1", running.port)  # type: ignore[misc]
                made.append(browser)
            await asyncio.gather(*(each.joined for each in made))
            browsers.extend(made)

        await open_some(200)
        base = memory_kib(gateway), memory_kib(worker)
        began = time.perf_counter()
        while len(browsers) < count + 200:
            await open_some(min(200, count + 200 - len(browsers)))
        opened_s = time.perf_counter() - began
        await asyncio.sleep(2)
        print(f"{count:,} WebSockets opened in {opened_s:.1f} s")
        for name, pid, before in (("gateway", gateway, base[0]), ("worker", worker, base[1])):
            print(f"  {name}: {(memory_kib(pid) - before) / count:.1f} KiB each")
        async with aiohttp.ClientSession(running.url) as session:
            p50s, p99s = [], []
            for number in range(1, rounds + 1):
                sent = time.perf_counter()
                async with session.post("/say", json={"text": "hello"}) as answer:
                    assert answer.status == 200, answer.status
                while any(each.seen < number for each in browsers):
                    await asyncio.sleep(0.01)
                    if time.perf_counter() - sent > 30:
                        raise SystemExit("a message did not arrive")
                times = sorted(each.at - sent for each in browsers)
                p50s.append(times[len(times) // 2])
                p99s.append(times[int(len(times) * 0.99)])
        p50, p99 = statistics.median(p50s) * 1e3, statistics.median(p99s) * 1e3
        print(f"  a message to all: p50 {p50:.0f} ms, p99 {p99:.0f} ms")


def main() -> None:
    """Run it."""
    asyncio.run(measure(10_000, 5))

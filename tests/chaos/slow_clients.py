"""Slow clients against a gateway: how long they hold on, and what the others notice.

    python -m tests.chaos.slow_clients --clients 2000 --seconds 40

Starts a gateway in a process of its own, and in another one as many clients as asked for, a third of each kind: heads
that come byte by byte (slowloris), bodies that come byte by byte, and answers of 1 MiB that are read byte by byte or
not at all. Each connects again when it is closed. Meanwhile a neighbour sends requests and measures their latency, as
before the attack. Exit code 1 when a request of the neighbour failed, the gateway died, or its p99 is more than twice
that of before (and above 20 ms, the noise of a shared machine).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import psutil

import mesh
from mesh import http
from mesh.config import GatewaySettings
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.testing import Mesh
from tests.patience import run_until_terminated

ROOT: Final = Path(__file__).parents[2]
LARGE: Final = bytes(2**20)
#: How often a slow client sends or reads a byte.
EVERY_S: Final = 1.0
#: A slow client that was closed returns within this time.
RETURN_S: Final = 2.0
#: Latencies below this are the noise of a machine that does other things, too.
NOISE_S: Final = 0.02
NEIGHBOURS: Final = 4

#: Short times, so that some seconds show what the defaults show in minutes; the slow clients return more often.
QUICK: Final = GatewaySettings(
    port=0,
    max_connections=20_000,
    header_timeout_s=2.0,
    timeout_s=2.0,
    write_timeout_s=2.0,
    min_read_rate_bytes=1024,
    max_unsent_total_bytes=64 * 2**20,
    keep_alive_s=30.0,
)


class Shop(mesh.Service):
    """What is attacked."""

    @http.get("/hello")
    async def hello(self) -> str:
        return "hello"

    @http.get("/large")
    async def large(self) -> bytes:
        return LARGE

    @http.post("/size")
    async def size(self, data: bytes) -> int:
        return len(data)


async def serve(limits: GatewaySettings) -> None:
    """The gateway; prints its port."""
    async with Mesh(Shop) as m:
        gateway = Gateway(m.node, msgspec.structs.replace(m.settings, gateway=limits))
        server = gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        # Otherwise the kernel takes some 3 MB for each client, and nothing is left to wait for it here.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener, backlog=4096)
        print(listener.getsockname()[1], flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            accepting.close()
            await server.shutdown(0.2)


# --- slow clients -------------------------------------------------------------------------------------


async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    await _trickle(reader, writer)


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"POST /size HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Length: 100000\r\n\r\n"
    )
    await _trickle(reader, writer)


async def _trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(EVERY_S):
                await reader.read()


async def slow_reader(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    some = random.random() < 0.5
    # Beyond its limit the StreamReader stops reading from the socket.
    while not reader.at_eof():
        await asyncio.sleep(EVERY_S)
        if reader.exception() is not None or writer.transport.is_closing():
            return
        if some:
            await reader.read(1)
        else:
            writer.write(b"\r\n")  # fails once the gateway has reset the connection


KINDS: Final = {"heads": slow_head, "bodies": slow_body, "readers": slow_reader}


async def attack(port: int, clients: int, seconds: float, kinds: list[str]) -> None:
    """Be `clients` slow clients; prints "ready" when all are connected once, and at the end what happened as JSON."""
    # They stand for clients on other machines, and must not take the processor from the gateway and its neighbour.
    os.nice(19)
    held: dict[str, list[float]] = {kind: [] for kind in KINDS}
    opened: Counter[str] = Counter()
    ends_at = time.monotonic() + seconds + 60
    ready = asyncio.Event()
    first = 0

    async def one(kind: str) -> None:
        nonlocal first
        fresh = True
        while True:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=2048)
            began = time.monotonic()
            opened[kind] += 1
            if fresh:
                fresh = False
                first += 1
                if first == clients:
                    ready.set()
            try:
                await KINDS[kind](reader, writer)
            except OSError:
                pass
            finally:
                writer.transport.abort()
            held[kind].append(time.monotonic() - began)
            # Otherwise all of them return in the instant after a sweep has closed them.
            await asyncio.sleep(random.uniform(0, RETURN_S))

    tasks = []
    for number in range(clients):
        tasks.append(asyncio.create_task(one(kinds[number % len(kinds)])))
        if number % 10 == 9:
            await asyncio.sleep(0.02)
    await asyncio.wait_for(ready.wait(), max(1.0, ends_at - time.monotonic()))
    print("ready", flush=True)
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps({kind: [opened[kind], sorted(held[kind])] for kind in KINDS}), flush=True)


# --- the neighbour ------------------------------------------------------------------------------------


@dataclass
class Found:
    """What a run has shown.

    Attributes:
        before_s, during_s: latencies of the neighbour.
        held_s: per kind, how long a slow client was served until its connection was closed.
    """

    before_s: list[float] = field(default_factory=list)
    during_s: list[float] = field(default_factory=list)
    failed: int = 0
    opened: dict[str, int] = field(default_factory=dict)
    held_s: dict[str, list[float]] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    before_mb: float = 0.0
    most_mb: float = 0.0
    alive: bool = False

    @property
    def good(self) -> bool:
        return self.alive and not self.failed and p(self.during_s, 0.99) <= max(2 * p(self.before_s, 0.99), NOISE_S)

    def __str__(self) -> str:
        lines = [
            f"{'':>10} {'requests':>9} {'p50 ms':>8} {'p99 ms':>8}",
            *(
                f"{name:>10} {len(each):>9} {p(each, 0.5) * 1000:>8.2f} {p(each, 0.99) * 1000:>8.2f}"
                for name, each in (("before", self.before_s), ("during", self.during_s))
            ),
            f"failed requests of the neighbour: {self.failed}; memory {self.before_mb:.0f} → {self.most_mb:.0f} MB",
        ]
        for kind, held in self.held_s.items():
            median = f"{p(held, 0.5):.1f} s" if held else "-"
            lines.append(f"{kind:>10}: {self.opened[kind]} connections, {len(held)} closed, held for {median} (median)")
        return "\n".join([*lines, f"limits: {self.limits}"])


def p(values: list[float], share: float) -> float:
    """A percentile."""
    found = sorted(values)
    return found[min(len(found) - 1, int(len(found) * share))] if found else 0.0


async def run(clients: int, seconds: float, kinds: Sequence[str] = tuple(KINDS), *, quick: bool) -> Found:
    """Measure before and during the attack.

    Args:
        quick: with QUICK instead of the default limits.
    """
    found = Found()
    async with program("serve", "quick" if quick else "defaults") as gateway:
        port = int(await line(gateway))
        process = psutil.Process(gateway.pid)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            await neighbours(session, 0.5, found)
            found.before_s = await neighbours(session, seconds, found)
            found.before_mb = process.memory_info().rss / 2**20
            async with program("attack", str(port), str(clients), str(seconds + 2), *kinds) as attackers:
                assert await line(attackers) == "ready"
                sampling = asyncio.create_task(_sample(process, found))
                found.during_s = await neighbours(session, seconds, found)
                told = json.loads(await line(attackers))
                sampling.cancel()
            found.opened = {kind: count for kind, (count, _) in told.items()}
            found.held_s = {kind: held for kind, (_, held) in told.items()}
            async with session.get("/metrics") as answer:
                text = await answer.text()
            for name, labels, value in re.findall(r"^mesh_(http_\w+)_total(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
                if name in ("http_limits_exceeded", "http_heads_timed_out"):
                    limit = re.search(r'limit="(\w+)"', labels)
                    found.limits[limit[1] if limit else name] = float(value)
            found.alive = gateway.returncode is None
    return found


async def neighbours(session: aiohttp.ClientSession, seconds: float, found: Found) -> list[float]:
    """Requests of a few clients that behave; their latencies."""
    took: list[float] = []
    ends_at = time.monotonic() + seconds

    async def one() -> None:
        while (began := time.monotonic()) < ends_at:
            try:
                async with session.get("/hello") as answer:
                    found.failed += answer.status != 200 or await answer.json() != "hello"
            except aiohttp.ClientError:
                found.failed += 1
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.005)

    await asyncio.gather(*(one() for _ in range(NEIGHBOURS)))
    return took


async def _sample(process: psutil.Process, found: Found) -> None:
    while True:
        found.most_mb = max(found.most_mb, process.memory_info().rss / 2**20)
        await asyncio.sleep(0.2)


@asynccontextmanager
async def program(*words: str) -> AsyncIterator[Any]:
    """This file as another process, which ends with the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.chaos.slow_clients",
        *words,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=2**24,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def line(process: Any) -> str:
    text: bytes = await asyncio.wait_for(process.stdout.readline(), 120)
    return text.decode().strip()


def main() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if sys.argv[1:2] == ["serve"]:
        run_until_terminated(serve(QUICK if sys.argv[2] == "quick" else GatewaySettings(port=0)))
    elif sys.argv[1:2] == ["attack"]:
        run_until_terminated(attack(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:]))
    else:
        parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
        parser.add_argument("--clients", type=int, default=2000)
        parser.add_argument("--seconds", type=float, default=40.0)
        parser.add_argument("--kind", choices=[*KINDS], action="append", help="of slow clients; all when absent")
        parser.add_argument("--quick", action="store_true", help="with shorter limits than the defaults")
        options = parser.parse_args()
        found = asyncio.run(run(options.clients, options.seconds, options.kind or [*KINDS], quick=options.quick))
        print(found)
        sys.exit(not found.good)


if __name__ == "__main__":
    main()

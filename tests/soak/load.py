"""The load of a soak, a process of its own: `python -m tests.soak.load MESH_TOML URL COUNT_FILE [--leak]`.

Every kind of use, each in a loop of its own with a small pause. What fails because something is just restarted is
tried again later; it is answers that are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiohttp

import mesh
from tests.patience import run_until_terminated

SERVICES: Final = ("steady", "rolled")
PAUSE_S: Final = 0.02


class Load:
    """Attributes:
    answered, failed: by kind of use.
    """

    def __init__(self, n: mesh.Node, http: aiohttp.ClientSession, toml: Path, url: str) -> None:
        self.n = n
        self.http = http
        self.toml = toml
        self.url = url
        self.rng = random.Random(1)
        self.number = itertools.count()
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    async def again_and_again(self, use: Callable[[], Awaitable[None]], pause_s: float = PAUSE_S) -> None:
        name = use.__name__
        while True:
            try:
                await use()
            except (mesh.MeshError, aiohttp.ClientError, TimeoutError):
                self.failed[name] += 1
            else:
                self.answered[name] += 1
            await asyncio.sleep(self.rng.uniform(0, 2 * pause_s))

    def service(self) -> str:
        return self.rng.choice(SERVICES)

    async def call(self) -> None:
        await self.n.call(f"{self.service()}.nested", "x" * self.rng.randrange(2000))

    async def stream(self) -> None:
        async for _ in self.n.stream(f"{self.service()}.count", 50):
            pass

    async def cut_stream(self) -> None:
        """One that its reader leaves."""
        async for number in self.n.stream(f"{self.service()}.count", 100_000):
            if number == 5:
                break

    async def event(self) -> None:
        await self.n.emit("soak.heard", {"number": next(self.number)})

    async def task(self) -> None:
        job = await self.n.defer(f"{self.service()}.work", next(self.number))
        await job.result(timeout=20)

    async def state(self) -> None:
        key = f"key-{self.rng.randrange(200)}"
        value, etag = await self.n.state("soak").get(key)
        with suppress(mesh.Conflict):
            await self.n.state("soak").set(key, (value or 0) + 1, etag=etag, ttl="60s")

    async def lock(self) -> None:
        async with self.n.lock(f"lock-{self.rng.randrange(3)}", ttl=5, wait=5):
            await asyncio.sleep(0.01)

    async def get(self) -> None:
        async with self.http.get(f"{self.url}/echo/{next(self.number)}") as answer:
            answer.raise_for_status()
            await answer.read()

    async def post(self) -> None:
        async with self.http.post(f"{self.url}/rpc/{self.service()}/sum", json={"numbers": [1] * 100}) as answer:
            answer.raise_for_status()
            await answer.read()

    async def refused(self) -> None:
        """A request that is wrong."""
        async with self.http.post(f"{self.url}/rpc/steady/sum", data=b"{") as answer:
            await answer.read()

    async def sse(self) -> None:
        headers = {"Accept": "text/event-stream"}
        async with self.http.get(f"{self.url}/count/30", headers=headers) as answer:
            answer.raise_for_status()
            async for _ in answer.content:
                pass

    async def cut_sse(self) -> None:
        """One whose browser goes away."""
        headers = {"Accept": "text/event-stream", "Connection": "close"}
        async with self.http.get(f"{self.url}/count/1000000", headers=headers) as answer:
            await answer.content.readline()

    async def visitor(self) -> None:
        """A client that comes for one call."""
        async with mesh.connect(path=self.toml) as n:
            await n.call(f"{self.service()}.echo", "visitor")

    async def leak(self) -> None:
        await self.n.call("leaky.keep", 200_000)


async def run(options: argparse.Namespace) -> None:
    timeout = aiohttp.ClientTimeout(total=20)
    async with (
        mesh.connect(path=options.toml, wait_s=20) as n,
        aiohttp.ClientSession(timeout=timeout) as http,
        asyncio.TaskGroup() as group,
    ):
        load = Load(n, http, options.toml, options.url)
        for use in (load.call, load.stream, load.cut_stream, load.event, load.task, load.state, load.lock):
            group.create_task(load.again_and_again(use))
        for use in (load.get, load.post, load.refused, load.sse):
            group.create_task(load.again_and_again(use))
        group.create_task(load.again_and_again(load.cut_sse, 0.2))
        group.create_task(load.again_and_again(load.visitor, 0.2))
        if options.leak:
            group.create_task(load.again_and_again(load.leak, 0.1))
        while True:
            new = options.count.with_suffix(".new")
            failed = " ".join(f"{name}={count}" for name, count in sorted(load.failed.items()))
            new.write_text(f"{load.answered.total()} {failed}\n")
            new.replace(options.count)
            await asyncio.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("toml", type=Path)
    parser.add_argument("url")
    parser.add_argument("count", type=Path)
    parser.add_argument("--leak", action="store_true")
    options = parser.parse_args()
    run_until_terminated(run(options))


if __name__ == "__main__":
    main()

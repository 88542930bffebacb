"""The gateway under load with thousands of connections open that ask nothing.

Owns: holding the idle connections, alternating with none.
Leaves to others: wrk, the mesh (stage).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.children import ChildFailed
from benchmarks.memory import of_process
from benchmarks.plan import Plan, medians, spread, turns
from benchmarks.stage import stage
from benchmarks.wrk import wrk

IDLE = 2_000
REQUEST = b"GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def allow_files(count: int) -> None:
    """Raise this process's limit of open files, which its children inherit; ChildFailed if it may not be so high."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ChildFailed(f"{count} open files are needed and {hard} allowed: ulimit -Hn {count}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


@asynccontextmanager
async def idle(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """So many connections that were used once and are silent since."""
    connections: list[Connection] = []
    # A listening socket's backlog may be as small as 128.
    gate = asyncio.Semaphore(50)

    async def connect() -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            connections.append((reader, writer))
            writer.write(REQUEST)
            await reader.readuntil(b"\r\n\r\n")

    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(connect() for _ in range(count)))
        yield connections
    finally:
        for _, writer in connections:
            writer.transport.abort()
        for _, writer in connections:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def run(plan: Plan) -> dict[str, Any]:
    """Alternate between no idle connections and `IDLE` of them.

    Returns:
        {"contestants": {"0" | "2000": figures}, "ratio": with / without in requests per second,
         "idle", "kept_open": the fewest still open after a round, "kb_each": of the gateway's memory}
    """
    count = 200 if plan.short else IDLE
    allow_files(count + 1_000)
    async with stage() as mesh:
        plan.say("idle: starting")
        await mesh.hub()
        await mesh.worker("Echo")
        client = await mesh.client()
        await mesh.found(client, "echo")
        gateway, port = await mesh.gateway()
        url = f"http://127.0.0.1:{port}/hello"
        await wrk(mesh.children, url, 1)
        rounds: dict[int, list[dict[str, float]]] = {0: [], count: []}
        kept, grown = [], []
        for number in range(plan.rounds):
            for connections in turns([0, count], number):
                plan.say(f"idle, round {number + 1} of {plan.rounds}: beside {connections} idle connections")
                before = of_process(gateway.pid)
                async with idle(port, connections) as held:
                    figures = await wrk(mesh.children, url, 3 * plan.seconds)
                    if connections:
                        kept.append(sum(not reader.at_eof() for reader, _ in held))
                        grown.append(of_process(gateway.pid)["pss_mb"] - before["pss_mb"])
                rounds[connections].append(figures)
    titles = {0: "no idle connection", count: f"{count:,} idle connections"}
    contestants: dict[str, dict[str, Any]] = {
        str(key): {"title": titles[key], **medians(each), "spread": spread([one["requests_per_s"] for one in each])}
        for key, each in rounds.items()
    }
    return {
        "contestants": contestants,
        "ratio": contestants[str(count)]["requests_per_s"] / contestants["0"]["requests_per_s"],
        "idle": count,
        "kept_open": min(kept),
        # The first time: memory that was freed once is used again later.
        "kb_each": grown[0] * 1_000 / count,
        "rounds": plan.rounds,
    }

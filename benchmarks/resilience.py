"""`python -m benchmarks.resilience`: what policies change when a service misbehaves.

Each trial without and with a policy, over ipc in one process, 200 calls a second to four instances that take 2 ms: now
and then one takes 100 ms; half of the calls fail, and may be repeated; every call takes a second.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import mesh
from mesh.testing import Mesh

RATE = 200
SECONDS = 5.0


class Stock(mesh.Service):
    """Takes 2 ms, or what it is told."""

    calls = 0
    #: The share of calls that take `slow_s`, and of those that fail.
    slow = 0.0
    slow_s = 0.0
    failing = 0.0

    @mesh.rpc(idempotent=True)
    async def take(self) -> None:
        Stock.calls += 1
        await asyncio.sleep(Stock.slow_s if random.random() < Stock.slow else 0.002)
        if random.random() < Stock.failing:
            raise mesh.TryLater("not now")


async def trial(
    policy: dict[str, Any], slow: float, slow_s: float, failing: float, timeout: float
) -> tuple[float, float, float, float]:
    """(share answered, p50 ms, p99 ms, handlers started per call), from the second second on."""
    Stock.slow, Stock.slow_s, Stock.failing = slow, slow_s, failing
    took: list[float] = []
    failed = 0
    settings = {"policies": {"stock.*": policy}, "log": {"level": "error"}}
    async with Mesh(Stock, replicas={Stock: 4}, transport="ipc", settings=settings) as m:

        async def one() -> None:
            nonlocal failed
            began = time.perf_counter()
            try:
                await m.call("stock.take", timeout=timeout)
            except mesh.MeshError:
                failed += 1
            took.append(time.perf_counter() - began)

        begins = time.perf_counter()
        calls = []
        for number in range(int(RATE * SECONDS)):
            wait = begins + number / RATE - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            if number == RATE:  # the first second is not counted
                await asyncio.gather(*calls)
                took.clear()
                failed = Stock.calls = 0
            calls.append(asyncio.create_task(one()))
        await asyncio.gather(*calls)
    took.sort()
    count = len(took)
    return 1 - failed / count, took[count // 2] * 1000, took[int(count * 0.99)] * 1000, Stock.calls / count


TRIALS: dict[str, tuple[dict[str, Any], float, float, float, float]] = {
    "healthy": ({}, 0.0, 0.0, 0.0, 5.0),
    "3 % of calls take 100 ms": ({}, 0.03, 0.1, 0.0, 5.0),
    'the same, hedge = "p95"': ({"hedge": "p95"}, 0.03, 0.1, 0.0, 5.0),
    "half of the calls fail": ({}, 0.0, 0.0, 0.5, 5.0),
    "the same, retries = 8": ({"retries": 8, "backoff": "2ms"}, 0.0, 0.0, 0.5, 5.0),
    "all take 1 s, timeout 0.2 s": ({}, 1.0, 1.0, 0.0, 0.2),
    "the same, breaker = 0.5": ({"breaker": 0.5, "breaker_open": "1s"}, 1.0, 1.0, 0.0, 0.2),
}


def main() -> None:
    """Run all trials."""
    print(f"{'':>28} {'answered':>9} {'p50 ms':>8} {'p99 ms':>8} {'attempts':>9}")
    for name, (policy, slow, slow_s, failing, timeout) in TRIALS.items():
        answered, p50, p99, attempts = asyncio.run(trial(policy, slow, slow_s, failing, timeout))
        print(f"{name:>28} {answered:>9.3f} {p50:>8.1f} {p99:>8.1f} {attempts:>9.2f}")


if __name__ == "__main__":
    main()

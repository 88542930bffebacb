"""How long things take from exec to ready.

Owns: the stop-watch.
Leaves to others: the mesh (stage), the whole set under supervisor (upset).
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks import upset
from benchmarks.children import Child, ChildFailed
from benchmarks.plan import Plan
from benchmarks.stage import Stage, stage


async def _worker(mesh: Stage, client: Child) -> float:
    """From exec until a client that was there before has found the instance."""
    began = time.monotonic()
    worker = await mesh.worker("Echo")
    found = await mesh.found(client, "echo")
    await mesh.children.end(worker)
    await mesh.found(client, "echo", instances=0)
    return float(found["at"]) - began


async def _gateway(mesh: Stage) -> float:
    """From exec until it accepts connections."""
    began = time.monotonic()
    gateway, _ = await mesh.gateway()
    took = time.monotonic() - began
    await mesh.children.end(gateway)
    return took


def _timed(took: list[float]) -> dict[str, float]:
    return {"seconds": statistics.median(took), "worst_s": max(took)}


async def run(plan: Plan) -> dict[str, Any]:
    """Start each several times, with the hub running.

    Returns:
        {"worker" | "gateway" | "up": {"seconds", "worst_s"}, "failures"?: [text]}
    """
    workers, gateways, ups, failures = [], [], [], []
    async with stage() as mesh:
        await mesh.hub()
        client = await mesh.client()
        for number in range(plan.rounds):
            plan.say(f"startup, round {number + 1} of {plan.rounds}")
            workers.append(await _worker(mesh, client))
            gateways.append(await _gateway(mesh))
    for number in range(plan.rounds):
        plan.say(f"startup, round {number + 1} of {plan.rounds}: mesh up")
        try:
            async with upset.up() as everything:
                ups.append(everything.seconds)
        except ChildFailed as exc:
            failures.append(str(exc))
            break
    result: dict[str, Any] = {"worker": _timed(workers), "gateway": _timed(gateways), "rounds": plan.rounds}
    if ups:
        result["up"] = _timed(ups)
    if failures:
        result["failures"] = failures
    return result

"""Events to every instance: one publisher, one subscriber.

Owns: the rounds.
Leaves to others: publishing and counting (asker), the subscriber (service.Listener).
"""

from __future__ import annotations

from typing import Any

from benchmarks.plan import Plan, medians
from benchmarks.stage import stage


async def run(plan: Plan) -> dict[str, Any]:
    """Returns {"events_per_s", "emitted", "lost", "p50_us", "p99_us"}: medians; lost is that of the worst round."""
    rounds = []
    async with stage() as mesh:
        await mesh.hub()
        await mesh.worker("Listener")
        client = await mesh.client()
        await mesh.found(client, "listener")
        for number in range(plan.rounds):
            plan.say(f"events, round {number + 1} of {plan.rounds}")
            question = {"verb": "emit", "seconds": plan.seconds, "singles": 50 if plan.short else 500}
            rounds.append(await client.ask(question, timeout=60 + plan.seconds))
    return {**medians(rounds), "lost": max(one["lost"] for one in rounds), "rounds": plan.rounds}

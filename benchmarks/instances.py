"""What a call costs when more instances are registered, and so more are chosen from.

Owns: the steps.
Leaves to others: the loop (asker), the instances (many).
"""

from __future__ import annotations

from typing import Any

from benchmarks.children import python
from benchmarks.fanout import by_instances
from benchmarks.plan import Plan
from benchmarks.stage import stage

COUNTS = (1, 4, 16, 64)
CALLERS = (1, 64)


async def run(plan: Plan) -> dict[str, Any]:
    """Returns {"instances": {count: {callers: figures}}}."""
    rounds: dict[tuple[int, int], list[dict[str, float]]] = {}
    counts = COUNTS[: 2 if plan.short else None]
    for number in range(plan.rounds):
        for count in counts:
            async with stage() as mesh:
                await mesh.hub()
                await mesh.children.start("many", python("benchmarks.many", str(count)))
                client = await mesh.client()
                await mesh.found(client, "echo", count, timeout=40)
                for callers in CALLERS:
                    plan.say(f"instances, round {number + 1} of {plan.rounds}: {count} instances, {callers} callers")
                    question = {"verb": "call", "callers": callers, "seconds": plan.seconds, "warm_s": plan.warm_s}
                    figures = await client.ask(question, 60 + plan.seconds)
                    rounds.setdefault((count, callers), []).append(figures)
    return {"instances": by_instances(rounds), "rounds": plan.rounds}

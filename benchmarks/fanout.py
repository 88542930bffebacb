"""scatter over a growing number of instances.

Owns: the steps.
Leaves to others: the loop (asker), the mesh (stage).
"""

from __future__ import annotations

from typing import Any

from benchmarks.plan import Plan, medians
from benchmarks.stage import stage

COUNTS = (1, 2, 4, 8)
CALLERS = (1, 16)


async def run(plan: Plan) -> dict[str, Any]:
    """Returns {"instances": {count: {callers: figures}}}: `calls_per_s` counts scatters, each answered by all."""
    rounds: dict[tuple[int, int], list[dict[str, float]]] = {}
    async with stage() as mesh:
        await mesh.hub()
        client = await mesh.client()
        running = 0
        for count in COUNTS[: 2 if plan.short else None]:
            # Each a process of its own: that is what a scatter is for.
            for _ in range(count - running):
                await mesh.worker("Echo")
            running = count
            await mesh.found(client, "echo", count)
            for number in range(plan.rounds):
                for callers in CALLERS:
                    plan.say(f"fanout, round {number + 1} of {plan.rounds}: {count} instances, {callers} callers")
                    question = {
                        "verb": "scatter",
                        "instances": count,
                        "callers": callers,
                        "seconds": plan.seconds,
                        "warm_s": plan.warm_s,
                    }
                    rounds.setdefault((count, callers), []).append(await client.ask(question, 60 + plan.seconds))
    return {"instances": by_instances(rounds), "rounds": plan.rounds}


def by_instances(rounds: dict[tuple[int, int], list[dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """{instances: {callers: medians}}, as JSON has it, with words for keys."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (count, callers), each in rounds.items():
        found.setdefault(str(count), {})[str(callers)] = medians(each)
    return found

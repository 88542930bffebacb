"""Round trips: every contestant under the same loads, one client process and one answering process each.

Owns: the loads.
Leaves to others: the contestants (peers), the rounds (contest), the loop of calls (drive).
"""

from __future__ import annotations

from typing import Any

from benchmarks.contest import Contest, Load
from benchmarks.peers import ROSTER
from benchmarks.plan import Plan

#: (body, callers)
LOADS = (("small", 1), ("small", 64), ("small", 1000), ("big", 1), ("big", 8))


async def run(plan: Plan) -> dict[str, Any]:
    """What `Contest.hold` returns; a load's key is "small-64" for 64 callers with the small body."""
    loads = [
        Load(
            f"{body}-{callers}",
            {"body": body, "callers": callers, "seconds": plan.seconds, "warm_s": plan.warm_s},
        )
        for body, callers in LOADS
    ]
    return await Contest("rpc", plan, loads, timeout_s=30 + 4 * plan.seconds).hold(ROSTER.chosen(plan.only))

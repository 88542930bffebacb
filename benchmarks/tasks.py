"""Tasks end to end: published, run and acknowledged by one worker; each does nothing.

Owns: the loads.
Leaves to others: the contestants (queues), the rounds (contest), publishing and waiting (tasks_host), counting (tally).
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks import disk
from benchmarks.contest import Contest, Load
from benchmarks.plan import Plan
from benchmarks.queues import ROSTER

#: A queue takes longer than a call to show its speed: it fills while it empties.
LONGER = 3


async def run(plan: Plan) -> dict[str, Any]:
    """What `Contest.hold` returns.

    The load "many" has `tasks_per_s` from the first publish to the last run, and `published_per_s`; "one" has p50 and
    p99 of a single task from its publish to the end of its run. "disk" is what `disk.disk` tells.
    """
    many = {"verb": "many", "seconds": LONGER * plan.seconds, "warm_s": plan.warm_s}
    one = {"verb": "one", "seconds": plan.seconds, "warm_s": plan.warm_s}
    loads = [Load("many", many, by="tasks_per_s"), Load("one", one, by="p50_us")]
    contest = Contest("tasks", plan, loads, timeout_s=120 + 12 * plan.seconds, before=os.sync, directory=disk.DIRECTORY)
    return {"disk": disk.disk(), **await contest.hold(ROSTER.chosen(plan.only))}

"""Durable publishing: one publisher process, each caller waiting for its confirmation.

Owns: the loads.
Leaves to others: the contestants (publishers), the rounds (contest), the loop (publish_host, drive).
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks import disk
from benchmarks.contest import Contest, Load
from benchmarks.plan import Plan
from benchmarks.publishers import ROSTER

CALLERS = (1, 64, 256)
#: Messages in one batch: what a program that has many at hand gives at once.
BATCH = 100


async def run(plan: Plan) -> dict[str, Any]:
    """What `Contest.hold` returns; `calls_per_s` counts confirmed messages.

    A load's key is "one-64" for 64 callers, each publishing one message at a time, and "batch-1" for one caller that
    publishes `BATCH` at once; p50 and p99 are then those of the whole batch. "disk" is what `disk.disk` tells.
    """
    wait = {"seconds": plan.seconds, "warm_s": plan.warm_s}
    loads = [Load(f"one-{callers}", {"callers": callers, "batch": 0, **wait}) for callers in CALLERS]
    loads.append(Load("batch-1", {"callers": 1, "batch": BATCH, **wait}))
    # What an earlier contestant wrote and did not sync would be paid for by the next one that does.
    contest = Contest("publish", plan, loads, timeout_s=60 + 4 * plan.seconds, before=os.sync, directory=disk.DIRECTORY)
    return {"disk": disk.disk(), "batch": BATCH, **await contest.hold(ROSTER.chosen(plan.only))}

"""What an idle process of each kind holds.

Owns: reading the kernel's account of it.
Leaves to others: the mesh (stage).
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from benchmarks import upset
from benchmarks.children import ChildFailed
from benchmarks.plan import Plan, medians
from benchmarks.stage import stage

TITLES = {"hub": "hub", "worker": "worker that does nothing", "gateway": "gateway"}
#: Programs of the set that are no workers.
OTHERS = ("hub", "gateway")
SETTLE_S = 3.0


def read(smaps_rollup: str) -> dict[str, float]:
    """{"pss_mb", "rss_mb"} from the text of /proc/PID/smaps_rollup, in millions of bytes."""
    kilobytes = dict(re.findall(r"^(Rss|Pss):\s+(\d+) kB$", smaps_rollup, re.MULTILINE))
    return {f"{name.lower()}_mb": int(kilobytes[name]) * 1024 / 1e6 for name in ("Pss", "Rss")}


def of_process(pid: int) -> dict[str, float]:
    """The memory of a process now."""
    return read(Path(f"/proc/{pid}/smaps_rollup").read_text())


async def _of_the_set(plan: Plan) -> dict[str, dict[str, Any]]:
    """The heaviest process of each program that `mesh up` starts."""
    async with upset.up() as everything:
        await asyncio.sleep(plan.warm_s if plan.short else SETTLE_S)
        found = {}
        for program, pids in everything.pids.items():
            heaviest = max((of_process(pid) for pid in pids), key=lambda one: one["pss_mb"])
            kind = program if program in OTHERS else f"{program} worker"
            found[f"up-{program}"] = {
                "title": f"{kind}, in the set of `mesh up`",
                "worker": program not in OTHERS,
                **heaviest,
            }
        return found


async def run(plan: Plan) -> dict[str, Any]:
    """Start one of each alone, then the whole set; let them idle, read.

    Returns:
        {"processes": {key: {"title", "worker": whether it is one, "pss_mb", "rss_mb"}},
         "worker_mb": Pss of the heaviest worker, "failures"?: [text]}
    """
    rounds: dict[str, list[dict[str, float]]] = {key: [] for key in TITLES}
    for number in range(plan.rounds):
        plan.say(f"memory, round {number + 1} of {plan.rounds}")
        async with stage() as mesh:
            started = {"hub": await mesh.hub(), "worker": await mesh.worker("Echo")}
            client = await mesh.client()
            await mesh.found(client, "echo")
            started["gateway"], _ = await mesh.gateway()
            # Its libraries would be counted as shared with the others.
            await mesh.children.end(client)
            # What starting allocated is freed, a few renewals have passed.
            await asyncio.sleep(plan.warm_s if plan.short else SETTLE_S)
            for key, process in started.items():
                rounds[key].append(of_process(process.pid))
    processes: dict[str, dict[str, Any]] = {
        key: {"title": TITLES[key], "worker": key == "worker", **medians(each)} for key, each in rounds.items()
    }
    result: dict[str, Any] = {"processes": processes, "rounds": plan.rounds}
    plan.say("memory: the whole set")
    try:
        processes.update(await _of_the_set(plan))
    except ChildFailed as exc:
        result["failures"] = [str(exc)]
    result["worker_mb"] = max(one["pss_mb"] for one in processes.values() if one["worker"])
    return result

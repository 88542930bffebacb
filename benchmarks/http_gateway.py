"""HTTP through gateway and worker, beside a plain aiohttp application.

Owns: the two contestants, alternating.
Leaves to others: wrk, the mesh (stage), the application (web).
"""

from __future__ import annotations

from typing import Any

from benchmarks.children import free_ports, python, wait_for_port
from benchmarks.plan import Plan, medians, spread, turns
from benchmarks.stage import stage
from benchmarks.wrk import wrk

TITLES = {"mesh": "gateway → worker", "plain": "plain aiohttp application"}


async def run(plan: Plan) -> dict[str, Any]:
    """Alternate between the two.

    Returns:
        {"contestants": {"mesh" | "plain": figures}, "ratio": mesh / plain in requests per second}
    """
    async with stage() as mesh:
        plan.say("http: starting")
        await mesh.hub()
        await mesh.worker("Echo")
        client = await mesh.client()
        await mesh.found(client, "echo")
        _, gateway = await mesh.gateway()
        (plain,) = free_ports(1)
        await mesh.children.start("plain", python("benchmarks.web", str(plain)))
        await wait_for_port(plain, 10)
        urls = {"mesh": f"http://127.0.0.1:{gateway}/hello", "plain": f"http://127.0.0.1:{plain}/hello"}
        rounds: dict[str, list[dict[str, float]]] = {key: [] for key in urls}
        for key in urls:
            await wrk(mesh.children, urls[key], 1)
        for number in range(plan.rounds):
            for key in turns(list(urls), number):
                plan.say(f"http, round {number + 1} of {plan.rounds}: {TITLES[key]}")
                rounds[key].append(await wrk(mesh.children, urls[key], 3 * plan.seconds))
    figures: dict[str, dict[str, Any]] = {
        key: {"title": TITLES[key], **medians(each), "spread": spread([one["requests_per_s"] for one in each])}
        for key, each in rounds.items()
    }
    ratio = figures["mesh"]["requests_per_s"] / figures["plain"]["requests_per_s"]
    return {"contestants": figures, "ratio": ratio, "rounds": plan.rounds}

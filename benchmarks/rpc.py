"""Round trips: every contestant under the same loads, one client process and one answering process each.

Owns: the loads, the rounds, what is kept of them.
Leaves to others: the contestants (peers), the loop of calls (drive), their processes (children).

In a round everybody's processes are up, and each load goes over all contestants in turn, so that noise of the machine
hits all alike. Who waits for the turn costs nothing: it sleeps.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.children import Child, ChildFailed, Children, free_ports, wait_for_port
from benchmarks.peers import KEYS, Command, Peer, Place, peers
from benchmarks.plan import Plan, medians, spread, turns


@dataclass(frozen=True)
class Load:
    """So many callers with one kind of body."""

    body: str
    callers: int

    @property
    def key(self) -> str:
        return f"{self.body}-{self.callers}"


LOADS = (Load("small", 1), Load("small", 64), Load("small", 1000), Load("big", 1), Load("big", 8))


@dataclass
class Kept:
    """What became of one contestant."""

    peer: Peer
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


async def _start(children: Children, peer: Peer) -> Child:
    directory = Path(tempfile.mkdtemp(prefix=f"{peer.key[:6]}-", dir=children.directory))
    place = Place(directory, tuple(free_ports(4)))
    servers, client = peer.commands(place)

    def named(command: Command) -> str:
        return f"{peer.key}-{command.name}"

    for command in servers:
        await children.start(named(command), command.arguments, env=command.env, cwd=directory)
        if command.port is not None:
            await wait_for_port(command.port, 10)
    return await children.start_client(named(client), client.arguments, env=client.env, cwd=directory)


async def _one_round(plan: Plan, number: int, kept: Sequence[Kept], loads: Sequence[Load]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        # /tmp, not TMPDIR: a socket's path may have 107 characters.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp")))
        children = await stack.enter_async_context(Children(directory))
        clients: dict[str, Child] = {}
        for one in kept:
            plan.say(f"rpc, round {number + 1} of {plan.rounds}: starting {one.peer.title}")
            try:
                clients[one.peer.key] = await _start(children, one.peer)
            except ChildFailed as exc:
                one.failures.append(str(exc))
        for turn, load in enumerate(loads):
            for one in turns(kept, number * len(loads) + turn):
                client = clients.get(one.peer.key)
                if client is None:
                    continue
                plan.say(f"rpc, round {number + 1} of {plan.rounds}: {load.key} on {one.peer.title}")
                question = {
                    "body": load.body,
                    "callers": load.callers,
                    "seconds": plan.seconds,
                    "warm_s": plan.warm_s,
                }
                try:
                    figures = await client.ask(question, timeout=30 + 4 * plan.seconds)
                except ChildFailed as exc:
                    one.failures.append(f"{load.key}: {exc}")
                    del clients[one.peer.key]
                else:
                    one.rounds.setdefault(load.key, []).append(figures)


def _version(peer: Peer) -> str:
    try:
        return metadata.version(peer.package)
    except (metadata.PackageNotFoundError, ValueError):
        return ""


def _as_result(one: Kept) -> dict[str, Any]:
    loads = {
        key: {**medians(rounds), "spread": spread([each["calls_per_s"] for each in rounds]), "rounds": len(rounds)}
        for key, rounds in one.rounds.items()
    }
    result: dict[str, Any] = {"title": one.peer.title, "how": one.peer.how, "loads": loads}
    if one.failures:
        result["failures"] = one.failures
    return result


async def run(plan: Plan, loads: Sequence[Load] = LOADS) -> dict[str, Any]:
    """Measure everybody that is installed.

    Returns:
        {"loads": [key], "contestants": {key: {"title", "how", "loads": {load: figures}, "failures"?}},
         "missing": {key: {"title", "lacks": [name], "install"}}}; the figures are medians over the rounds.
    """
    # mesh is always among them: it is what the others are compared with.
    only = tuple(key for key in KEYS if key == "mesh" or key in plan.only) if plan.only else ()
    chosen = peers(only)
    lacking = {peer.key: peer.missing() for peer in chosen}
    kept = [Kept(peer) for peer in chosen if not lacking[peer.key]]
    for number in range(plan.rounds):
        await _one_round(plan, number, kept, loads)
    return {
        "loads": [load.key for load in loads],
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        "contestants": {one.peer.key: _as_result(one) for one in kept},
        "missing": {
            peer.key: {"title": peer.title, "lacks": lacking[peer.key], "install": peer.install}
            for peer in chosen
            if lacking[peer.key]
        },
    }

"""Contestants under the same loads, one client process each, round after round.

Owns: the rounds, whose turn it is, what is kept of them and what failed.
Leaves to others: the loads (rpc, publish, tasks), the contestants (peers, publishers, queues), processes (children).

In a round everybody's processes are up, and each load goes over all contestants in turn, so that noise of the machine
hits all alike. Who waits for the turn costs nothing: it sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.children import Child, ChildFailed, Children, free_ports, wait_for_port
from benchmarks.peers import Command, Peer, Place
from benchmarks.plan import Plan, medians, spread, turns


@dataclass(frozen=True)
class Load:
    """What every client is asked in turn; it answers with figures, or with nothing where it has no such form.

    Attributes:
        question: one line of JSON.
        by: the figure whose spread over the rounds is told.
    """

    key: str
    question: Mapping[str, Any]
    by: str = "calls_per_s"


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
            await wait_for_port(command.port, command.ready_s)
    return await children.start_client(named(client), client.arguments, env=client.env, cwd=directory)


@dataclass(frozen=True)
class Contest:
    """One part of the benchmarks.

    Attributes:
        part: its name on the command line.
        timeout_s: how long an answer may take.
        before: called, on a thread, before each load.
        directory: where the contestants' own directories are made. Short, and not TMPDIR: a socket's path may have 107
            characters.
    """

    part: str
    plan: Plan
    loads: Sequence[Load]
    timeout_s: float
    before: Callable[[], None] | None = None
    directory: str = "/tmp"

    def _say(self, number: int, what: str) -> None:
        self.plan.say(f"{self.part}, round {number + 1} of {self.plan.rounds}: {what}")

    async def _one_round(self, number: int, kept: Sequence[Kept]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mb-", dir=self.directory)))
            children = await stack.enter_async_context(Children(directory))
            clients: dict[str, Child] = {}
            for one in kept:
                self._say(number, f"starting {one.peer.title}")
                try:
                    clients[one.peer.key] = await _start(children, one.peer)
                except ChildFailed as exc:
                    one.failures.append(str(exc))
            for turn, load in enumerate(self.loads):
                for one in turns(kept, number * len(self.loads) + turn):
                    client = clients.get(one.peer.key)
                    if client is None:
                        continue
                    if self.before is not None:
                        await asyncio.to_thread(self.before)
                    self._say(number, f"{load.key} on {one.peer.title}")
                    try:
                        figures = await client.ask(load.question, self.timeout_s)
                    except ChildFailed as exc:
                        one.failures.append(f"{load.key}: {exc}")
                        del clients[one.peer.key]
                    else:
                        if figures:
                            one.rounds.setdefault(load.key, []).append(figures)

    def _as_result(self, one: Kept) -> dict[str, Any]:
        by = {load.key: load.by for load in self.loads}
        loads = {
            key: {**medians(rounds), "spread": spread([each[by[key]] for each in rounds]), "rounds": len(rounds)}
            for key, rounds in one.rounds.items()
        }
        result: dict[str, Any] = {"title": one.peer.title, "how": one.peer.how, "loads": loads}
        if one.failures:
            result["failures"] = one.failures
        return result

    async def hold(self, chosen: Sequence[Peer]) -> dict[str, Any]:
        """Measure everybody of these that is installed.

        Returns:
            {"loads": [key], "contestants": {key: {"title", "how", "loads": {load: figures}, "failures"?}},
             "missing": {key: {"title", "lacks": [name], "install"}}}; the figures are medians over the rounds.
        """
        lacking = {peer.key: peer.missing() for peer in chosen}
        kept = [Kept(peer) for peer in chosen if not lacking[peer.key]]
        for number in range(self.plan.rounds):
            await self._one_round(number, kept)
        return {
            "loads": [load.key for load in self.loads],
            "seconds": self.plan.seconds,
            "rounds": self.plan.rounds,
            "contestants": {one.peer.key: self._as_result(one) for one in kept},
            "missing": {
                peer.key: {"title": peer.title, "lacks": lacking[peer.key], "install": peer.install}
                for peer in chosen
                if lacking[peer.key]
            },
        }

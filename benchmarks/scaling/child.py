"""One end of what is measured, as a process: `python -m benchmarks.scaling.child ROLE …`.

Owns: making the real thing of that role, and telling what this process has used.
Leaves to others: which figures are taken from that (measure).

It says `{"ready": true}`, then answers each line of JSON with a line of JSON: what was asked for, with the processor
time, memory and open files of this process before and after.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.host import lines, run
from benchmarks.memory import read as read_memory
from benchmarks.scaling.model import Model
from mesh import config
from mesh.calls.pool import Group, Pool
from mesh.clock import LoopClock
from mesh.discovery.agent import Agent
from mesh.discovery.hub import Hub
from mesh.discovery.record import Instance
from mesh.node.node import Node
from mesh.protocol.caller import Caller
from mesh.transport.zmq_transport import from_settings

Question = dict[str, Any]


def usage() -> Question:
    """What this process has used until now; `asked_s` and `cpu_s` are before and after the work of finding out."""
    asked_s = time.process_time()
    gc.collect()
    fds = len(list(Path("/proc/self/fd").iterdir())) - 1
    pss = read_memory(Path("/proc/self/smaps_rollup").read_text())["pss_mb"]
    return {"asked_s": asked_s, "cpu_s": time.process_time(), "fds": fds, "pss_mb": pss, "at": time.monotonic()}


async def until(holds: Callable[[], bool], what: str, patience_s: float = 30.0) -> None:
    """Wait until it holds; looking costs a process that measures itself little."""
    end = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {patience_s:g} s")
        await asyncio.sleep(0.01)


class HubRole:
    """A hub on the first endpoint of mesh.hubs."""

    async def start(self) -> Question:
        settings = config.load()
        self.hub = Hub(from_settings(settings, "hub"), LoopClock(), identity="hub-1", epoch=1, learn_s=0.1)
        return {"endpoint": await self.hub.start(settings.mesh.hubs[0])}

    async def ask(self, _question: Question) -> Question:
        stats = self.hub.stats()
        return {"number": stats.number, "renewed": stats.counts.renewed, "links": stats.links}


class AgentsRole:
    """Many agents of one process, each with one record; one more that comes and goes."""

    async def start(self) -> Question:
        settings = config.load()
        self.transport = from_settings(settings, "client")
        self.model = Model(hosts=1000)
        self.agents: list[Agent] = []
        self.guests = 0
        self.settings = settings
        return {}

    async def ask(self, question: Question) -> Question:
        done: Question = await getattr(self, question["do"])(**question.get("with", {}))
        return done

    async def join(self, count: int, renew_s: float) -> Question:
        """So many more agents, until all know all."""
        for _ in range(count):
            number = len(self.agents)
            agent = Agent(
                self.transport,
                LoopClock(),
                self.settings.mesh.hubs,
                identity=f"agent-{number}",
                epoch=1,
                renew_s=renew_s,
                rng=random.Random(number),
            )
            agent.register(self.model.record(number))
            self.agents.append(agent)
            await agent.start()
        await until(lambda: all(len(agent.table) == len(self.agents) for agent in self.agents), "all know all")
        return {}

    async def idle(self, seconds: float) -> Question:
        await asyncio.sleep(seconds)
        return {}

    async def churn(self, times: int, shape: int) -> Question:
        """One instance with a record of that shape comes and goes so often; all hear of each before the next."""
        agent, last = self.agents[0], self.agents[-1]
        number = len(self.agents)
        for _ in range(times):
            self.guests += 1
            record = msgspec.structs.replace(self.model.record(number - number % 4 + shape), id=f"guest-{self.guests}")
            agent.register(record)
            await until(lambda record=record: last.table.get(record.id) is not None, "it came", 10)  # type: ignore[misc]
            await agent.leave(record.id)
            await until(lambda record=record: last.table.get(record.id) is None, "it went", 10)  # type: ignore[misc]
        return {}


class WorkerRole:
    """The accepting end of links: what a worker listens with."""

    async def start(self) -> Question:
        self.node = Node(config.load(), identity="worker-1")
        endpoint = await self.node.listen()
        return {"endpoint": endpoint}

    async def ask(self, question: Question) -> Question:
        await asyncio.sleep(question.get("seconds", 0.0))
        return {}


class CallerRole:
    """The dialling end of links, all to one worker: a link costs the same whoever is at its other end."""

    async def start(self) -> Question:
        self.settings = config.load()
        self.transport = from_settings(self.settings, "client")
        self.pools: list[Pool] = []
        self.groups: list[Group] = []
        return {}

    async def ask(self, question: Question) -> Question:
        if "dial" in question:
            ready = len(self.groups) + question["dial"]
            for number in range(len(self.groups), ready):
                pool = Pool(
                    self.transport,
                    LoopClock(),
                    random.Random(number),
                    lambda: Caller("caller-1", 1, 2**20),
                    lambda _group: None,
                )
                group = Group("echo")
                pool.add(group, Instance("echo", f"echo-{number}", 1, endpoint=question["endpoint"]))
                self.pools.append(pool)
                self.groups.append(group)
                if number % 20 == 19:
                    await asyncio.sleep(0.01)
            await until(lambda: all(group.ready for group in self.groups), "every link stands")
        await asyncio.sleep(question.get("seconds", 0.0))
        return {}


class SubscribersRole:
    """The bound end of PUB/SUB, many times."""

    async def start(self) -> Question:
        self.transport = from_settings(config.load(), "client")
        self.heard = 0
        self.subscribers: list[Any] = []
        return {}

    def _hear(self, _topic: str, _frame: Any) -> None:
        self.heard += 1

    async def ask(self, question: Question) -> Question:
        for _ in range(question.get("open", 0)):
            subscriber = self.transport.subscriber("tcp://127.0.0.1:*", self._hear)
            subscriber.subscribe("order.")
            self.subscribers.append(subscriber)
        await asyncio.sleep(question.get("seconds", 0.0))
        return {"heard": self.heard, "endpoints": [each.endpoint for each in self.subscribers]}


class PublisherRole:
    """The connecting end of PUB/SUB."""

    async def start(self) -> Question:
        self.transport = from_settings(config.load(), "client")
        self.publisher = self.transport.publisher()
        return {}

    async def ask(self, question: Question) -> Question:
        endpoints = question.get("connect", [])
        for endpoint in endpoints:
            self.publisher.connect(endpoint)
        await until(lambda: all(self.publisher.joined(each) for each in endpoints), "every subscriber joined")
        frame = b"x" * question.get("bytes", 200)
        for _ in range(question.get("send", 0)):
            self.publisher.send("order.placed", frame)
            await asyncio.sleep(0.0005)
        await asyncio.sleep(question.get("seconds", 0.0))
        return {}


ROLES: dict[str, Callable[[], Any]] = {
    "hub": HubRole,
    "agents": AgentsRole,
    "worker": WorkerRole,
    "caller": CallerRole,
    "subscribers": SubscribersRole,
    "publisher": PublisherRole,
}


async def main(role: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    actor = ROLES[role]()
    print(json.dumps({"ready": True, **await actor.start()}), flush=True)
    stdin = await lines()
    while line := await stdin.readline():
        before = usage()
        answer = await actor.ask(json.loads(line))
        print(json.dumps({**answer, "before": before, "after": usage()}), flush=True)


if __name__ == "__main__":
    run(main(sys.argv[1]), uvloop=True)

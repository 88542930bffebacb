"""Records to discover, and a mesh's discovery in memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mesh.clock import ManualClock, settle
from mesh.discovery.agent import Agent
from mesh.discovery.hub import Hub
from mesh.discovery.record import Instance
from mesh.transport.memory import MemoryNetwork, MemoryTransport


@pytest.fixture
def make() -> Callable[..., Instance]:
    """`make("a-1")`: an instance of service "a", epoch 1."""

    def make(instance_id: str, epoch: int = 1, **fields: Any) -> Instance:
        fields.setdefault("service", instance_id.partition("-")[0])
        return Instance(id=instance_id, epoch=epoch, **fields)

    return make


class World:
    """Hubs and agents of one test, each in a process of its own in memory, under one hand-turned clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = MemoryNetwork(self.clock)
        self.rng = random.Random(1)
        self.hubs: dict[str, Hub] = {}
        self.transports: dict[object, MemoryTransport] = {}
        self.agents: list[Agent] = []

    async def hub(self, name: str = "hub", *, epoch: int = 1, **options: Any) -> Hub:
        transport = MemoryTransport(self.network)
        hub = Hub(transport, self.clock, identity=name, epoch=epoch, **options)
        self.transports[hub] = transport
        await hub.start(f"mem://{name}")
        self.hubs[name] = hub
        return hub

    def kill_hub(self, name: str) -> None:
        """As by kill -9."""
        hub = self.hubs.pop(name)
        hub._ticking.cancel()
        self.network.kill(self.transports[hub])

    async def agent(self, identity: str, *names: str, **options: Any) -> Agent:
        transport = MemoryTransport(self.network)
        agent = Agent(
            transport,
            self.clock,
            [f"mem://{name}" for name in names or ("hub",)],
            identity=identity,
            epoch=1,
            rng=random.Random(self.rng.random()),
            **options,
        )
        self.transports[agent] = transport
        self.agents.append(agent)
        await agent.start()
        await settle()
        return agent

    def kill_agent(self, agent: Agent) -> None:
        """As by kill -9: no goodbye, no more renewals."""
        agent._beating.cancel()
        self.network.kill(self.transports[agent])
        self.agents.remove(agent)

    async def close(self) -> None:
        for agent in self.agents:
            for uplink in agent._uplinks:
                uplink.stop()
        for hub in self.hubs.values():
            await hub.stop(0)
        for transport in self.transports.values():
            await transport.close()
        await settle()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.close()

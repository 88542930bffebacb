"""Hub and agents over real sockets and real time."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from mesh.clock import LoopClock
from mesh.discovery.agent import Agent
from mesh.discovery.hub import Hub
from mesh.transport.zmq_transport import ZmqTransport

PATIENCE_S = 20.0


@pytest.fixture
async def run():
    """`await run.hub()`, `await run.agent("w1")`: each with a transport of its own, as in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        yield run
        await run.close()


class Run:
    def __init__(self, folder):
        self.folder = folder
        self.endpoint = f"ipc://{folder}/hub.sock"
        self.opened = []

    async def hub(self, epoch=1, **options):
        transport = ZmqTransport(self.folder)
        hub = Hub(transport, LoopClock(), identity="hub", epoch=epoch, **options)
        await hub.start(self.endpoint)
        self.opened += [(hub, transport)]
        return hub

    async def agent(self, identity):
        transport = ZmqTransport(self.folder)
        agent = Agent(transport, LoopClock(), [self.endpoint], identity=identity, epoch=1, renew_s=0.2)
        await agent.start()
        self.opened += [(agent, transport)]
        return agent

    async def close(self):
        for thing, transport in reversed(self.opened):
            await thing.stop()
            await transport.close()


async def until(agent, condition):
    """Wait, by way of `on_change`, until the agent's table fulfils `condition`."""
    happened = asyncio.Event()
    end = agent.on_change(lambda _: happened.set() if condition(agent.table) else None)
    try:
        if not condition(agent.table):
            async with asyncio.timeout(PATIENCE_S):
                await happened.wait()
    finally:
        end()


async def test_found_kept_and_left_over_real_sockets(run, make):
    """Registered, found, renewed past several leases, and gone at once when its process stops."""
    await run.hub(lease_s=0.6)
    worker, reader = await run.agent("w1"), await run.agent("w2")
    assert await reader.wait_synced(PATIENCE_S)
    worker.register(*[make(f"a-{at}", doc="x" * 2000) for at in range(100)])
    await until(reader, lambda table: len(table.instances("a")) == 100)

    left = []
    reader.on_change(lambda change: left.extend(change.left))
    await asyncio.sleep(1.3)
    assert left == []
    await worker.stop()
    await until(reader, lambda table: not table.instances("a"))
    assert {reason for _, reason in left} == {"left"}


async def test_a_hub_restarts_and_nobody_is_missed(run, make):
    """A second hub on the first one's endpoint is found, told everything, and forgets who died meanwhile."""
    first = await run.hub(epoch=1, lease_s=0.6)
    worker, doomed, reader = [await run.agent(name) for name in ("w1", "w2", "w3")]
    worker.register(make("a-1"))
    doomed.register(make("b-1"))
    await until(reader, lambda table: len(table) == 2)
    left = []
    reader.on_change(lambda change: left.extend((record.id, reason) for record, reason in change.left))

    await first.stop()
    doomed._beating.cancel()
    doomed._uplinks[0].stop()
    await run.hub(epoch=2, lease_s=0.6)
    await until(reader, lambda table: len(table) == 1)
    assert left == [("b-1", "unlisted")]
    assert reader.hubs_status()[0].epoch == 2

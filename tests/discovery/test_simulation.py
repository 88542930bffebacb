"""Five thousand instances, three hubs, many processes: joining, leaving, dying, for minutes of hand-turned time."""

from __future__ import annotations

import asyncio
import random

import pytest

from mesh.clock import settle
from mesh.discovery.registry import LOAD_STEP

HUBS = ("h1", "h2", "h3")
#: Who only looks. One hub is a harder life than three: nobody else makes up for its mistakes.
READERS = (("h1",), ("h2",), ("h1", "h3"))
WORKERS = 25
PER_WORKER = 200
SERVICES = 40
#: Longer than a lease, the grace of a stale claim, a tick and the slowest hub together.
QUIET_S = 11.0


class Simulation:
    """What really lives, and what everybody believes."""

    def __init__(self, world, make, seed):
        self.world = world
        self.make = make
        self.rng = random.Random(seed)
        self.alive = {}  # id -> (epoch, agent)
        self.workers = []
        self.readers = {}
        self.tasks = []
        self.false_deaths = []
        self.counts = dict.fromkeys(("joined", "left", "crashed", "moved", "killed", "cut", "swung"), 0)
        self._numbers = iter(range(10**9))

    async def start(self):
        for hub in HUBS:
            await self.world.hub(hub)
        # A near hub, a distant one, and one that is slow: news and registrations overtake each other.
        self.world.network.delay("mem://h2", 0.03)
        self.world.network.delay("mem://h3", 0.4)
        for hubs in READERS:
            self.readers[hubs] = self.believing(await self.world.agent("+".join(hubs), *hubs))
        for _ in range(WORKERS):
            await self.new_worker()
            await self.world.clock.advance(self.rng.random() * 0.05)

    async def new_worker(self):
        agent = self.believing(await self.world.agent(f"w{next(self._numbers)}", *HUBS))
        self.workers.append(agent)
        self.join(agent, PER_WORKER)

    def believing(self, agent):
        """Note whenever `agent` takes a living instance for gone."""

        def believe(change):
            for record, reason in change.left:
                if self.alive.get(record.id, (None,))[0] == record.epoch:
                    self.false_deaths.append((self.world.clock.now(), agent.identity, record.id, reason))

        agent.on_change(believe)
        return agent

    # --- what happens -----------------------------------------------------------------------------

    def some(self, most):
        held = self.rng.sample(sorted(self.alive), self.rng.randint(1, most))
        return [(key, *self.alive[key]) for key in held]

    def join(self, agent, count):
        for _ in range(count):
            number = next(self._numbers)
            record = self.make(f"s{number % SERVICES}-{number}", endpoint=f"mem://{agent.identity}")
            agent.register(record)
            self.alive[record.id] = (1, agent)
        self.counts["joined"] += count

    def leave(self):
        for key, _, agent in self.some(5):
            del self.alive[key]
            self.tasks.append(asyncio.create_task(agent.leave(key)))
            self.counts["left"] += 1

    def crash(self):
        """One instance's renewals end, while its process goes on."""
        for key, _, agent in self.some(5):
            del self.alive[key]
            agent._holdings.end(key)
            self.counts["crashed"] += 1

    def move(self):
        """Another process claims an id with a later epoch; the elder does not know yet."""
        [(key, epoch, elder)] = self.some(1)
        agent = self.rng.choice([worker for worker in self.workers if worker is not elder])
        self.alive[key] = (epoch + 1, agent)
        agent.register(self.make(key, epoch=epoch + 1, endpoint=f"mem://{agent.identity}"))
        self.counts["moved"] += 1

    async def kill(self):
        agent = self.rng.choice(self.workers)
        self.workers.remove(agent)
        self.world.kill_agent(agent)
        for key in [key for key, (_, owner) in self.alive.items() if owner is agent]:
            del self.alive[key]
        self.counts["killed"] += 1
        await self.new_worker()

    def cut(self):
        self.world.network.cut(f"mem://{self.rng.choice(HUBS)}", "a cable was pulled")
        self.counts["cut"] += 1

    def load_of(self, key):
        return self.alive[key][1]._holdings._loads[key]

    def swing(self):
        """Some are full or empty that were not."""
        for key, _, agent in self.some(20):
            agent.update_load(key, self.rng.random())
        self.counts["swung"] += 1

    async def churn(self, seconds):
        for _ in range(round(seconds * 10)):
            chance = self.rng.random()
            if chance < 0.40:
                self.join(self.rng.choice(self.workers), self.rng.randint(1, 6))
            elif chance < 0.60:
                self.leave()
            elif chance < 0.80:
                self.crash()
            elif chance < 0.95:
                self.move()
            elif chance < 0.98:
                await self.kill()
            else:
                self.cut()
            self.swing()
            await self.world.clock.advance(0.1)

    # --- what must hold ---------------------------------------------------------------------------

    async def check(self):
        """After quiet, everybody's table is the truth; and at no time was a living instance declared gone.

        Who has no hub at all cannot know the truth, but declares nobody gone either.
        """
        await self.world.clock.advance(QUIET_S)
        await asyncio.gather(*self.tasks)
        self.tasks.clear()
        truth = {key: epoch for key, (epoch, _) in self.alive.items()}
        readers = [agent for hubs, agent in self.readers.items() if not self.world.hubs.keys().isdisjoint(hubs)]
        for agent in (*self.workers, *readers):
            believed = {record.id: record.epoch for record in agent.table}
            assert believed == truth, (
                f"{agent.identity} misses {sorted(truth.items() - believed.items())[:5]} "
                f"and believes in {sorted(believed.items() - truth.items())[:5]}"
            )
            assert sum(len(agent.table.instances(name)) for name in agent.table.services()) == len(truth)
            # One hub's last word may be a step from the truth, and that of another, which is silent since, a step more.
            off = {record.id: record.load - self.load_of(record.id) for record in agent.table}
            assert max(map(abs, off.values())) <= 2 * LOAD_STEP + 1e-9
        assert self.false_deaths == []


@pytest.mark.parametrize("seed", [2])
async def test_five_thousand_instances_and_a_hub_that_restarts(world, make, seed):
    """Everybody knows the truth whenever it is quiet, and nobody living is ever declared gone."""
    simulation = Simulation(world, make, seed)
    await simulation.start()
    await simulation.check()
    assert len(simulation.alive) == WORKERS * PER_WORKER

    await simulation.churn(6.0)
    await simulation.check()

    # Known to the near hub, on the way to the slow one: the silence of the slow one means nothing yet.
    simulation.join(simulation.workers[0], 50)
    await world.clock.advance(0.05)
    world.kill_hub("h1")
    await simulation.churn(6.0)
    await simulation.check()

    await world.hub("h1", epoch=2)
    await simulation.churn(6.0)
    await simulation.check()
    assert world.hubs["h1"].stats().instances == len(simulation.alive)
    assert min(simulation.counts.values()) > 0
    await settle()

"""What one of each thing costs, measured with the real code: `python -m benchmarks.scaling --measure`.

Owns: which processes are started for a figure, and the subtraction that yields it.
Leaves to others: the processes (child), keeping the figures (units).

Everything goes over tcp with keys, as between hosts; a link is measured without them as well. Figures are processor
time, not time on the clock, so that a busy machine changes them little; of several rounds the least counts.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.children import Child, Children, free_ports, python
from benchmarks.scaling.model import SHAPES, Model
from benchmarks.scaling.units import Units
from mesh.clock import ManualClock
from mesh.discovery.admission import encode_loads, encode_record, encode_records, read_loads, read_news
from mesh.discovery.record import Instance
from mesh.discovery.registry import Registry
from mesh.discovery.table import Table
from mesh.events.bus import Bus
from mesh.gateway.catalog import Catalog
from mesh.transport.memory import MemoryTransport

MESH = "mesh.cli.main"
AGENTS = 100
FIRST_LINKS = 20
LINKS = 200
SUBSCRIBERS = 40
RECORDS = 1000
#: Fewer heartbeats: what is given for it is that a host without power is noticed later.
CALM = '[links]\nheartbeat = "5s"\nheartbeat_timeout = "15s"\n'

Answer = dict[str, Any]


def _cpu_us(answer: Answer) -> float:
    return float(answer["after"]["asked_s"] - answer["before"]["cpu_s"]) * 1e6


class Bench:
    """The children of one measurement."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._count = 0

    async def start(self, role: str) -> tuple[Child, Answer]:
        """A child, and what it said when it was ready."""
        self._count += 1
        child = await self._children.start(f"{role}-{self._count}", python("benchmarks.scaling.child", role))
        return child, await child.answer(30)


@asynccontextmanager
async def bench(keys: bool, more: str = "") -> AsyncIterator[Bench]:
    """A directory with settings, and with keys when wanted; gone afterwards with all that was started."""
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as name:
        directory = Path(name)
        (port,) = free_ports(1)
        text = f'[mesh]\nbind = "tcp://127.0.0.1:*"\nhubs = ["tcp://127.0.0.1:{port}"]\n[log]\nlevel = "error"\n'
        (directory / "mesh.toml").write_text(text + more + ('[keys]\ndir = "keys"\n' if keys else ""))
        async with Children(directory) as children:
            if keys:
                command = python(MESH, "keys", "make", "hub", "client", "worker")
                await children.run("keys", command, timeout=20)
            yield Bench(children)


async def discovery() -> dict[str, float]:
    """A renewal and a piece of news, at the hub and at those who hear of it."""
    async with bench(keys=True) as bench_:
        hub, _ = await bench_.start("hub")
        agents, _ = await bench_.start("agents")
        await agents.ask({"do": "join", "with": {"count": AGENTS, "renew_s": 0.02}}, 60)
        renewals, beats = [], []
        for _ in range(3):
            start = await hub.ask({}, 10)
            spent = await agents.ask({"do": "idle", "with": {"seconds": 0.7}}, 20)
            end = await hub.ask({}, 10)
            renewed = end["renewed"] - start["renewed"]
            renewals.append((end["before"]["asked_s"] - start["after"]["cpu_s"]) * 1e6 / renewed)
            beats.append(_cpu_us(spent) / renewed)
    async with bench(keys=True) as bench_:
        hub, _ = await bench_.start("hub")
        agents, _ = await bench_.start("agents")
        # Renewals go on meanwhile, once a second each; what they take is known, and subtracted.
        await agents.ask({"do": "join", "with": {"count": AGENTS, "renew_s": 1.0}}, 60)
        sizes, tells, hears = [], [], []
        for shape in (0, len(SHAPES) - 1):
            # Half of the news is that the guest came, with its record; the other half that it went, without.
            sizes.append(memoryview(encode_record(Model(hosts=1000).record(shape))).nbytes / 2)
            told_us, heard_us = [], []
            for _ in range(3):
                start = await hub.ask({}, 10)
                spent = await agents.ask({"do": "churn", "with": {"times": 20, "shape": shape}}, 60)
                end = await hub.ask({}, 10)
                told = (end["number"] - start["number"]) * AGENTS
                renewed = end["renewed"] - start["renewed"]
                hub_us = (end["before"]["asked_s"] - start["after"]["cpu_s"]) * 1e6 - renewed * min(renewals)
                told_us.append(hub_us / told)
                heard_us.append((_cpu_us(spent) - renewed * min(beats)) / told)
            tells.append(min(told_us))
            hears.append(min(heard_us))
    hub_byte_us = max(0.0, (tells[1] - tells[0]) / (sizes[1] - sizes[0]))
    agent_byte_us = max(0.0, (hears[1] - hears[0]) / (sizes[1] - sizes[0]))
    return {
        "hub_renewal_us": min(renewals),
        "agent_renewal_us": min(beats),
        "hub_news_us": tells[0] - hub_byte_us * sizes[0],
        "hub_byte_ns": hub_byte_us * 1e3,
        "agent_news_us": hears[0] - agent_byte_us * sizes[0],
        "agent_byte_ns": agent_byte_us * 1e3,
    }


async def links(keys: bool, more: str = "", idle_s: float = 3.0) -> dict[str, float]:
    """A link from a caller to a worker: making it, keeping it."""
    async with bench(keys, more) as bench_:
        worker, said = await bench_.start("worker")
        caller, _ = await bench_.start("caller")
        # The first ones pay for what is made once: the I/O thread's buffers, the first key.
        await caller.ask({"dial": FIRST_LINKS, "endpoint": said["endpoint"], "seconds": 0.3}, 60)
        at_worker = await worker.ask({}, 10)
        at_caller = await caller.ask({"dial": LINKS, "endpoint": said["endpoint"], "seconds": 0.1}, 60)
        after = await worker.ask({}, 10)
        idle_before = await worker.ask({}, 10)
        idle = await caller.ask({"seconds": idle_s}, 10 + idle_s)
        idle_after = await worker.ask({}, 10)
    used, was = after["before"], at_worker["after"]
    seconds = idle["after"]["at"] - idle["before"]["at"]
    per_second = (FIRST_LINKS + LINKS) * seconds
    return {
        "caller_link_us": _cpu_us(at_caller) / LINKS,
        "worker_link_us": (used["asked_s"] - was["cpu_s"]) * 1e6 / LINKS,
        "caller_link_kb": (at_caller["after"]["pss_mb"] - at_caller["before"]["pss_mb"]) * 1e3 / LINKS,
        "worker_link_kb": (used["pss_mb"] - was["pss_mb"]) * 1e3 / LINKS,
        "caller_link_fds": (at_caller["after"]["fds"] - at_caller["before"]["fds"]) / LINKS,
        "worker_link_fds": (used["fds"] - was["fds"]) / LINKS,
        "caller_idle_us": _cpu_us(idle) / per_second,
        "worker_idle_us": (idle_after["before"]["asked_s"] - idle_before["after"]["cpu_s"]) * 1e6 / per_second,
    }


async def events() -> dict[str, float]:
    """An event to every instance: what a further subscriber costs the publisher."""
    async with bench(keys=True) as bench_:
        subscribers, _ = await bench_.start("subscribers")
        publisher, _ = await bench_.start("publisher")
        few = (await subscribers.ask({"open": 1}, 10))["endpoints"]
        await publisher.ask({"connect": few, "seconds": 0.2}, 30)
        one = min([_cpu_us(await publisher.ask({"send": 1000}, 30)) / 1000 for _ in range(2)])
        many = (await subscribers.ask({"open": SUBSCRIBERS}, 10))["endpoints"][1:]
        joined = await publisher.ask({"connect": many, "seconds": 0.2}, 30)
        all_of_them = min([_cpu_us(await publisher.ask({"send": 1000}, 30)) / 1000 for _ in range(2)])
    return {
        "publish_us": one,
        "publish_each_us": (all_of_them - one) / SUBSCRIBERS,
        "subscriber_fds": (joined["after"]["fds"] - joined["before"]["fds"]) / SUBSCRIBERS,
        "subscriber_kb": (joined["after"]["pss_mb"] - joined["before"]["pss_mb"]) * 1e3 / SUBSCRIBERS,
    }


async def _deliver(*_args: Any, **_how: Any) -> None:
    """Nobody calls it."""


def _fresh(count: int) -> list[Instance]:
    """Records as they come from the wire."""
    model = Model(hosts=1000)
    return read_news(encode_records([model.record(number) for number in range(count)]), "snapshot")


def _read_us(count: int) -> float:
    """Taking in one record of a snapshot of so many: decoded, put into a table, the interpreter's sweeps included."""
    body = encode_records([Model(hosts=1000).record(number) for number in range(count)])
    spent = []
    for _ in range(3):
        gc.collect()
        table = Table()
        begun = time.process_time()
        table.snapshot("one", 1, 1, False, read_news(body, "snapshot"))
        spent.append(time.process_time() - begun)
    return min(spent) / count * 1e6


def _traced_kb(make: Callable[[], object]) -> float:
    """What making it leaves in memory, in KB."""
    gc.collect()
    tracemalloc.start()
    kept = make()
    gc.collect()
    traced = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return traced / 1e3


def _table() -> Table:
    table = Table()
    table.snapshot("one", 1, 1, False, _fresh(RECORDS))
    return table


def _load_us() -> float:
    """Hearing one load among others, as it moves to and fro."""
    table = _table()
    spent = []
    for load in (0.9, 0.0, 0.9, 0.0):
        body = encode_loads([(record.id, load) for record in table])
        begun = time.process_time()
        table.loads("one", read_loads(body))
        spent.append(time.process_time() - begun)
    return min(spent) / RECORDS * 1e6


def _registry() -> Registry:
    registry = Registry(now=0.0, learn_s=0.0)
    for record in _fresh(RECORDS):
        registry.register(record.worker, [record], 0.0)
    registry.take_news()
    return registry


def records() -> dict[str, float]:
    """A record on the wire, in memory, registered and read."""
    found = _fresh(RECORDS)
    registry = _registry()
    encoding, registering, learning, listening = [], [], [], []
    table = _table()
    catalog = Catalog(table)
    service = table.services()[0]
    bus = Bus(MemoryTransport(), table, ManualClock(), _deliver, publisher="one")
    for _ in range(3):
        other = Registry(now=0.0, learn_s=0.0)
        begun = time.process_time()
        for record in found:
            other.register(record.worker, [record], 0.0)
        registering.append((time.process_time() - begun) / RECORDS)
        registry._snapshot = None
        begun = time.process_time()
        registry.snapshot()
        encoding.append((time.process_time() - begun) / RECORDS)
        begun = time.process_time()
        catalog._learn(service)
        learning.append((time.process_time() - begun) / len(table.instances(service)))
        table.version += 1
        begun = time.process_time()
        bus._listeners()
        listening.append((time.process_time() - begun) / RECORDS)
    return {
        "record_bytes": sum(memoryview(encode_record(record)).nbytes for record in found) / RECORDS,
        "table_record_kb": _traced_kb(_table) / RECORDS,
        "hub_record_kb": _traced_kb(_registry) / RECORDS,
        "hub_register_us": min(registering) * 1e6,
        "hub_snapshot_record_us": min(encoding) * 1e6,
        "agent_load_us": _load_us(),
        "agent_snapshot_record_us": _read_us(800),
        "agent_snapshot_record_many_us": _read_us(8000),
        "gateway_learn_us": min(learning) * 1e6,
        "listeners_us": min(listening) * 1e6,
    }


def _round() -> dict[str, float]:
    found = dict(records())
    found |= asyncio.run(discovery())
    found |= asyncio.run(links(keys=True))
    found |= {f"plain_{name}": value for name, value in asyncio.run(links(keys=False)).items()}
    calm = asyncio.run(links(keys=True, more=CALM, idle_s=10.0))
    found |= {name: calm[name.removeprefix("calm_")] for name in ("calm_caller_idle_us", "calm_worker_idle_us")}
    found |= asyncio.run(events())
    return found


def measure(rounds: int = 2) -> Units:
    """Everything, so often; about a minute each. Whatever else a machine does only adds: the least counts."""
    found = [_round() for _ in range(rounds)]
    least = {name: min(each[name] for each in found) for name in found[0]}
    return msgspec.convert({name: float(f"{value:.3g}") for name, value in least.items()}, Units)


async def join(count: int) -> float:
    """Processor time of a real hub to which so many real agents come at once, with a record each."""
    async with bench(keys=True) as bench_:
        hub, _ = await bench_.start("hub")
        agents, _ = await bench_.start("agents")
        start = await hub.ask({}, 10)
        await agents.ask({"do": "join", "with": {"count": count, "renew_s": 1.0}}, 60)
        end = await hub.ask({}, 10)
    return float(end["before"]["asked_s"] - start["after"]["cpu_s"])

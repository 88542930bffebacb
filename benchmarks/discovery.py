"""What a renewal costs a hub, by how many instances it keeps: `python -m benchmarks.discovery [--json]`.

Owns: this one figure, and what goes with it: a look for expired leases, one new reader's snapshot.
Leaves to others: sockets (rpc), and what discovery costs a whole mesh (instances).

Every instance renews each second, in one message for all of one worker. The hub's half is measured from the bytes
of that message to the lease it prolongs, without a socket. A figure that grew with the number of instances would
mean that a hub's work grows with its square.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable

from mesh.clock import ManualClock
from mesh.discovery.admission import read_news
from mesh.discovery.hub import Hub, Peer
from mesh.discovery.record import Instance, MethodRecord
from mesh.discovery.registry import Registry
from mesh.discovery.table import Table
from mesh.protocol.codec import one
from mesh.protocol.messages import HELLO, RENEW, VERSION
from mesh.transport.memory import MemoryTransport

COUNTS = (100, 1_000, 5_000)
PER_WORKER = 10
ROUNDS = 7
#: Each timing covers about so many renewals: far above the clock's grain, and a fraction of a second.
RENEWALS = 50_000


class Silent:
    """A channel that leads nowhere."""

    peer = "benchmark"
    user = ""

    def wake(self) -> None:
        pass

    def close(self, reason: str = "") -> None:
        raise RuntimeError(f"the hub cut a benchmark's peer: {reason}")


def _record(number: int) -> Instance:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    methods = {name: MethodRecord(name, schema, {"type": "string"}) for name in ("hello", "count", "describe")}
    return Instance("greeting", f"greeting-{number:08x}", 1, f"w-{number // PER_WORKER}", methods=methods)


def _workers(count: int) -> list[list[Instance]]:
    records = [_record(number) for number in range(count)]
    return [records[at : at + PER_WORKER] for at in range(0, count, PER_WORKER)]


def _best_us(work: Callable[[], None], units: int) -> float:
    """µs per unit: the best of some rounds, for whatever else this machine does only adds."""
    work()
    best = float("inf")
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            work()
            best = min(best, time.perf_counter() - begun)
    finally:
        gc.enable()
    return best / units * 1e6


def _registry(workers: list[list[Instance]]) -> Registry:
    registry = Registry(now=0.0, learn_s=0.0)
    for records in workers:
        registry.register(records[0].worker, records, 0.0)
    registry.tick(0.0)
    registry.take_news()
    return registry


def lease(count: int) -> float:
    """Prolonging one lease: the registry alone."""
    workers = _workers(count)
    registry = _registry(workers)
    beats = [(records[0].worker, [[record.id, 1, 0.05] for record in records]) for records in workers]
    times = max(1, RENEWALS // count)

    def work() -> None:
        for _ in range(times):
            for worker, renewals in beats:
                registry.renew(worker, renewals, 1.0)

    return _best_us(work, times * count)


def message(count: int) -> float:
    """One renewal's share of its worker's message: read, checked, prolonged."""
    workers = _workers(count)
    hub = Hub(MemoryTransport(), ManualClock(), identity="hub", epoch=1)
    hub.registry = _registry(workers)
    beats = []
    for records in workers:
        peer = Peer(hub, Silent())
        peer.opened()
        peer.receive([one(HELLO, VERSION, records[0].worker, 1, 1 << 26)])
        beats.append((peer, [one(RENEW, [[record.id, 1, 0.05] for record in records])]))
    times = max(1, RENEWALS // count)

    def work() -> None:
        for _ in range(times):
            for peer, frames in beats:
                peer.receive(frames)

    return _best_us(work, times * count)


def look(count: int) -> float:
    """Looking for expired leases when there are none: once a tick, however many there are."""
    registry = _registry(_workers(count))

    def work() -> None:
        for _ in range(1000):
            registry.tick(0.0)

    return _best_us(work, 1000)


def snapshot(count: int) -> float:
    """A new reader takes everything in: per instance, from the hub's bytes to a table."""
    body = _registry(_workers(count)).snapshot()
    times = max(1, 5_000 // count)

    def work() -> None:
        for _ in range(times):
            Table().snapshot("hub", 1, 1, False, read_news(body, "snapshot"))

    return _best_us(work, times * count)


FIGURES: dict[str, Callable[[int], float]] = {
    "lease_us": lease,
    "renewal_us": message,
    "look_us": look,
    "snapshot_us": snapshot,
}


def measure() -> list[dict[str, float]]:
    """One row per number of instances: each of FIGURES in µs, and the share of a core that renewals take."""
    rows = []
    for count in COUNTS:
        row: dict[str, float] = {"instances": count}
        row.update((name, round(figure(count), 3)) for name, figure in FIGURES.items())
        row["core_percent"] = round(row["renewal_us"] * count / 1e6 * 100, 3)
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.discovery", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    chosen = parser.parse_args(arguments)
    rows = measure()
    if chosen.json:
        print(json.dumps({"benchmark": "discovery", "per_worker": PER_WORKER, "rows": rows}, indent=2))
        return 0
    print(f"{PER_WORKER} instances per worker, each renewed once a second, one message per worker\n")
    print("instances │    lease │  renewal │ look for expired │ new reader, per instance │ renewals take")
    for row in rows:
        print(
            f"{row['instances']:>9,} │ {row['lease_us']:5.2f} µs │ {row['renewal_us']:5.2f} µs │"
            f" {row['look_us']:13.2f} µs │ {row['snapshot_us']:21.2f} µs │ {row['core_percent']:.2f} % of a core"
        )
    print("\nlease: prolonging it; renewal: its share of the message, read, checked and prolonged")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A process that writes turns of everything to a core, as fast as it can, and says what was confirmed: for kill -9.

One line for each turn that has ended: the number of the last unit that is durable now. Tasks, keys and events have
such numbers, so that whoever reads the file afterwards knows what must be in it.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from mesh import ids
from mesh.engines.contract import Unit
from mesh.engines.sqlite.core import Core
from mesh.events.log import NewEvent
from mesh.state.contract import Write
from mesh.tasks.contract import NewTask, Queue, Settlement

QUEUE = "mail.send"
AUDIT = "orders.audit"


def main() -> None:
    dir, seed, first = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    core = Core(dir)
    core.open()
    number = first
    wall = 1_000_000.0 + first
    with core.turn(wall) as turn:
        turn.declare(Queue(AUDIT, 100, patterns=("order.*",), start="all"))
        for session in list(core.held()):
            turn.release(session, lost=False)
    held = []
    while True:
        wall += rng.random()
        units = []
        for _ in range(rng.randrange(1, 8)):
            number += 1
            task = NewTask(f"t{number}", QUEUE, b"x" * rng.choice([10, 2000]), key=f"k{number}", keep_s=1e6)
            event = NewEvent(f"e{number}", "order.created", b"%d" % number, key=str(number % 3))
            write = Write("units", str(number), "set", ids.etag(), b"\x01", etag="")
            units.append(Unit(f"u{number}", tasks=[task], events=[event], writes=[write]))
        # Of each lease: done, with a ledger written in the same unit; or tried again.
        for lease in held:
            if rng.random() < 0.8:
                ledger = Write("ledger", lease.id, "add", ids.etag(), by=1)
                total = Write("ledger", "total", "add", ids.etag(), by=1)
                said = Settlement(lease.id, lease.attempt, "done", b"\x01" * rng.choice([1, 1500]))
                units.append(Unit(f"d{lease.id}.{lease.attempt}", settle=[said], writes=[ledger, total]))
            else:
                units.append(Unit("", settle=[Settlement(lease.id, lease.attempt, "retry", error="again")]))
        with core.turn(wall) as turn:
            outcomes = turn.apply(units)
            assert all(outcome.error is None for outcome in outcomes), outcomes
            held = turn.claim(QUEUE, rng.randrange(6), "worker-1@1") + turn.claim(AUDIT, rng.randrange(6), "worker-1@1")
            turn.pump()
            turn.sweep(20)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

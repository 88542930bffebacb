"""kill -9 at any moment: what was confirmed is there, nothing is half there, and nothing was done twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import sqlite_writer
from sqlite_bench import Bench

#: Writers that are killed one after the other on the same file.
LIVES = 4


def confirmed(dir: Path, seed: int, first: int, rng: random.Random) -> int:
    """Let a writer live for a moment and kill it; the last number that it confirmed."""
    writer = subprocess.Popen(
        [sys.executable, sqlite_writer.__file__, str(dir), str(seed), str(first)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    line = writer.stdout.readline()
    assert line, "the writer could not begin"
    time.sleep(rng.uniform(0.02, 0.25))
    writer.kill()
    rest = writer.stdout.read()
    writer.wait()
    writer.stdout.close()
    # The last line may be cut.
    return int((line + rest).rpartition("\n")[0].split()[-1])


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_confirmed_is_lost_and_nothing_is_half_done(tmp_path: Path, seed: int) -> None:
    """Task, event, key and state of one unit are all there or none is; the ledger says how often each task was done."""
    rng = random.Random(seed)
    first = 0
    for life in range(LIVES):
        last = confirmed(tmp_path / "data", 100 * seed + life, first, rng)
        bench = Bench(tmp_path / "data")
        core, wall = bench.core, 1_000_000.0
        assert core.check() == []
        # A turn may have been committed without anybody being told: at most one, of at most seven units.
        for number in range(1, last + 8):
            parts = (
                core.job(f"t{number}", wall) is not None,
                core.get("units", [str(number)], wall)[0] is not None,
            )
            assert parts in ([(True, True)] if number <= last else [(True, True), (False, False)]), (number, last)
            first = number if parts[0] else first
        events, after = [], 0
        while after is not None:
            found, after = core.read("#", after=after, limit=5000)
            events += [each.event.id for each in found]
        assert events == [f"e{number}" for number in range(1, first + 1)]
        total = 0
        for entry in core.page("ledger", limit=100_000, wall=wall):
            if entry.key != "total":
                assert msgspec.msgpack.decode(entry.value) == 1, f"{entry.key} was done twice"
                total += 1
        [counted] = core.get("ledger", ["total"], wall)
        assert (msgspec.msgpack.decode(counted.value) if counted is not None else 0) == total
        queues = {queue.name: queue for queue in core.queues(wall)}
        done = [info.id for info in core.jobs(sqlite_writer.QUEUE, "done", limit=100_000, wall=wall)]
        ledger = core.get("ledger", done, wall)
        assert all(entry is not None for entry in ledger)
        mail = queues[sqlite_writer.QUEUE]
        assert mail.ready + mail.running + len(done) == first
        bench.sound()
        bench.core.close()

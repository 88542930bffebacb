"""Counting tasks over processes and threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from benchmarks import tally
from benchmarks.children import ROOT


def test_what_worker_processes_have_run_is_added_up(tmp_path):
    """Each writes a file of its own; the instant is that of the last, on the clock that all share."""
    script = "from benchmarks import tally\nfor _ in range(3): tally.add()"
    tallies = tally.Tallies(tmp_path)
    assert tallies.read() == (0, 0.0)
    begin = time.monotonic()
    for number in (1, 2):
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env={tally.VARIABLE: str(tmp_path)}, check=True, timeout=20
        )
        count, at = tallies.read()
        assert count == 3 * number
        assert begin < at < time.monotonic()


def test_threads_of_one_worker_lose_no_count(tmp_path):
    """A pool of threads counts as exactly as one."""
    mine = tally.Tally(tmp_path)

    def work() -> None:
        for _ in range(2_000):
            mine.add()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.Tallies(tmp_path).read()[0] == 8_000


def test_a_child_that_was_forked_counts_for_itself(tmp_path):
    """The file is made by the first task, not by the import: a pool forks in between."""
    script = (
        "import os\nfrom benchmarks import tally\n"
        "for _ in range(2):\n"
        "    if not os.fork():\n"
        "        tally.add(); os._exit(0)\n"
        "    os.wait()\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={tally.VARIABLE: str(tmp_path)}, check=True, timeout=20
    )
    assert tally.Tallies(tmp_path).read()[0] == 2

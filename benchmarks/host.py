"""One side of a Python contestant, as a process: `python -m benchmarks.host serve|ask KEY PLACE`.

Owns: the process around `serve` and `connect` of a contestant's file: its loop, its end, its lines of JSON.
Leaves to others: the contestant (peers), the loop of calls (drive).

The asking side writes `{"ready": true}` when both bodies came back whole, then answers each line
`{"body", "callers", "seconds", "warm_s"}` with the figures of that load.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from typing import Any

from benchmarks.drive import Call, drive
from benchmarks.peers import BIG, SMALL, Place, module

BODIES = {"small": SMALL, "big": BIG}


def run(main: Coroutine[Any, Any, None], uvloop: bool) -> None:
    """Run on uvloop if it is wished for and installed."""
    if uvloop:
        with contextlib.suppress(ImportError):
            import uvloop as fast

            fast.run(main)
            return
    asyncio.run(main)


def end_with_stdin() -> None:
    """End this process when the benchmark that holds the other end of stdin is gone."""

    def watch() -> None:
        # Not sys.stdin: a contestant that forks would inherit its lock, held.
        while os.read(0, 4096):
            pass
        if os.getpgrp() == os.getpid():
            # Started by the benchmark as the head of a group: what a contestant forked ends too.
            os.killpg(0, signal.SIGKILL)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


async def lines() -> asyncio.StreamReader:
    """stdin as a stream, read without a thread that would disturb what is measured."""
    reader = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def say(**what: Any) -> None:
    """One line of JSON for the benchmark."""
    print(json.dumps(what), flush=True)


async def first(call: Call, body: Any) -> None:
    """Ask until the other side is up, and check that the body comes back as it went."""
    async with asyncio.timeout(20):
        while True:
            try:
                back = await asyncio.wait_for(call(body), 5)
                break
            except Exception:
                # Not up yet. A contestant that is broken shows when the time is over.
                await asyncio.sleep(0.05)
    if back != body:
        raise SystemExit("the body came back changed")


async def ask(key: str, place: Place) -> None:
    """Be the client of one contestant until stdin ends."""
    async with module(key).connect(place) as calls:
        for name, call in calls.items():
            await first(call, BODIES[name])
        say(ready=True)
        stdin = await lines()
        while line := await stdin.readline():
            load = json.loads(line)
            call, body = calls[load["body"]], BODIES[load["body"]]
            await drive(call, body, load["callers"], load["warm_s"])
            gc.collect()
            say(**await drive(call, body, load["callers"], load["seconds"]))


def main(argv: list[str]) -> None:
    role, key, where = argv
    place, file = Place.from_argument(where), module(key)
    if role == "ask":
        run(ask(key, place), file.PEER.uvloop)
        return
    end_with_stdin()
    if asyncio.iscoroutinefunction(file.serve):
        run(file.serve(place), file.PEER.uvloop)
    else:
        file.serve(place)


if __name__ == "__main__":
    main(sys.argv[1:])

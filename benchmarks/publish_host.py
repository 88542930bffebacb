"""A publisher as a process: `python -m benchmarks.publish_host KEY PLACE`.

Owns: its lines of JSON; the proof that what was confirmed is there.
Leaves to others: the contestant (publishers), the loop (drive).

It writes `{"ready": true}` once a message was confirmed, then answers each line
`{"callers", "batch", "seconds", "warm_s"}` with figures per message; `{}` where the contestant has no batches.
"""

from __future__ import annotations

import gc
import json
import sys

from benchmarks.drive import Call, Figures, drive
from benchmarks.host import first, lines, run, say
from benchmarks.peers import SMALL, Place
from benchmarks.publishers import ROSTER, Publisher


def per_message(figures: Figures, batch: int) -> Figures:
    """Speed and processor time by the message; the time that a caller waits stays that of the whole batch."""
    return {
        **figures,
        "calls": figures["calls"] * batch,
        "calls_per_s": figures["calls_per_s"] * batch,
        "cpu_us": figures["cpu_us"] / batch,
    }


async def _confirmed(publisher: Publisher, count: int) -> None:
    """SystemExit when fewer messages are kept than were confirmed."""
    if publisher.stored is not None and (kept := await publisher.stored()) < count:
        raise SystemExit(f"{count} messages were confirmed and {kept} are there")


async def _ask(key: str, place: Place) -> None:
    async with ROSTER.module(key).connect(place) as publisher:

        async def asked(body: object) -> object:
            await publisher.one(body)
            return body

        await first(asked, SMALL)
        say(ready=True)
        count = 1
        stdin = await lines()
        while line := await stdin.readline():
            load = json.loads(line)
            size = load["batch"]
            call: Call | None = publisher.batch if size else publisher.one
            if call is None:
                say()
                continue
            body = [SMALL] * size if size else SMALL
            warm = await drive(call, body, load["callers"], load["warm_s"])
            gc.collect()
            figures = per_message(await drive(call, body, load["callers"], load["seconds"]), size or 1)
            count += warm["calls"] * (size or 1) + figures["calls"]
            await _confirmed(publisher, count)
            say(**figures)


def main(argv: list[str]) -> None:
    key, where = argv
    run(_ask(key, Place.from_argument(where)), ROSTER.module(key).PEER.uvloop)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Callers on one host that never stop: `links_load.py CALLERS DEADLINE_S SERVICE.METHOD[:BYTES]…`.

A line for each answer or error: when the call began, how long it took, what it was, who answered. Instants are of the
monotonic clock, which all hosts here share. The argument of a call is so many bytes. It ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time

import mesh


async def call(node: mesh.Node, word: str, deadline_s: float) -> None:
    target, _, size = word.partition(":")
    args = [bytes(int(size))] if size else []
    while True:
        began_at = time.monotonic()
        try:
            who = await node.call(target, *args, timeout=deadline_s)
            code = ""
        except mesh.MeshError as error:
            who, code = "", error.code
        took_s = time.monotonic() - began_at
        sys.stdout.write(json.dumps([target, began_at, took_s, code, who]) + "\n")
        # A human's pace: two cores have to carry all the hosts there are.
        await asyncio.sleep(0.02)


async def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    callers, deadline_s = int(sys.argv[1]), float(sys.argv[2])
    async with mesh.connect() as node:
        tasks = [asyncio.create_task(call(node, target, deadline_s)) for target in sys.argv[3:] for _ in range(callers)]
        stopping = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
        await stopping.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())

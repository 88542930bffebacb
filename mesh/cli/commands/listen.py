"""`mesh listen`. Owns: a service that receives every event of some topics, and printing them.

Leaves to others: delivering events (events), running the service (worker.worker).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click
import msgspec

from mesh.cli import arguments, exits, loop, setting
from mesh.cli.output import json_option, note, wants_json, write_json
from mesh.events.event import Event
from mesh.service.decorators import on
from mesh.service.service import Service


@click.command("listen")
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Exit after N events.")
@click.option("--timeout", type=arguments.Span(), metavar="SPAN", help="Exit after this time: 10, 1m.")
@json_option
def command(topics: tuple[str, ...], count: int | None, timeout: float | None) -> int:
    """Print events as they arrive, one per line. Without a TOPIC, print all events.

    In a TOPIC, * stands for one word and # for none or more: `mesh listen 'order.*'`.
    It receives events that are emitted from now on, at most once. Services still receive all of their events.
    """
    return loop.run(_listen(topics or ("#",), count, timeout))


async def _listen(topics: tuple[str, ...], count: int | None, timeout: float | None) -> int:
    from mesh.config import OPERATOR
    from mesh.worker.worker import Worker

    # Bounded, so that a stopped terminal loses events instead of filling memory.
    heard: asyncio.Queue[Event] = asyncio.Queue(10_000)
    # It has the key and the access rules of a command, although it registers a service while it listens.
    worker = Worker([_listener(topics, heard)], setting.settings(), role=OPERATOR)
    try:
        await worker.start()
        if not await worker.node.agent.wait_synced(loop.SYNC_S):
            raise loop.unheard(worker.node)
        note(f"listening to {', '.join(topics)}; Ctrl-C stops")
        seen = 0
        try:
            async with asyncio.timeout(timeout):
                while count is None or seen < count:
                    _write(await heard.get())
                    seen += 1
        except TimeoutError:
            return exits.OK if count is None else exits.UNAVAILABLE
    finally:
        await worker.stop()
    return exits.OK


def _listener(topics: tuple[str, ...], heard: asyncio.Queue[Event]) -> type[Service]:
    async def hear(self: Service, event: Event) -> None:
        if heard.full():
            note("too slow: events were dropped")
        else:
            heard.put_nowait(event)

    for topic in topics:
        hear = on(topic, to="every")(hear)
    return type("Listen", (Service,), {"name": "listen", "hear": hear, "__doc__": "A running `mesh listen`."})


def _write(event: Event) -> None:
    if wants_json():
        write_json(msgspec.to_builtins(event, enc_hook=str))
        return
    data: Any = msgspec.json.encode(event.data, enc_hook=str).decode()
    click.echo(f"{time.strftime('%H:%M:%S', time.localtime(event.at))} {event.topic} {data}")

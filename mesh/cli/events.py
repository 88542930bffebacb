"""`mesh events`: the log of durable events. Owns: its options. Leaves to others: the log (the engine of events)."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import click
import msgspec

from mesh.cli import loop
from mesh.cli.jobs import when
from mesh.cli.output import json_option, note, wants_json, write_json
from mesh.config.values import read_duration
from mesh.events.log import LoggedEvent
from mesh.protocol.messages import JSON, MSGPACK

PAGE = 500


@click.group("events")
@json_option
def command() -> None:
    """Read the log of durable events, and deliver from it again. `mesh tasks` shows who hears of them, and how far."""


@command.command("read")
@click.argument("pattern", default="#")
@click.option("--after", default=0, type=click.IntRange(0), metavar="OFFSET", help="Begin behind this offset.")
@click.option("--limit", default=100, type=click.IntRange(1), show_default=True, help="At most so many.")
@json_option
def read(pattern: str, after: int, limit: int) -> None:
    """Print kept events whose topic matches PATTERN (`order.*`, `#` for all), oldest first, one line each."""
    loop.run(_read(pattern, after, limit))


async def _read(pattern: str, after: int, limit: int) -> None:
    async with loop.connected() as n:
        while limit > 0:
            page = await n.durable.engines.events.read(
                pattern, after=after, limit=min(limit, PAGE), timeout_s=n.durable.timeout_s
            )
            for one in page:
                _write(one)
            if not page:
                return
            after = page[-1].offset
            limit -= len(page)


def _write(one: LoggedEvent) -> None:
    event = one.event
    data = _data(event.body, event.encoding)
    if wants_json():
        shown = {"offset": one.offset, "topic": event.topic, "at": event.at, "id": event.id, "data": data}
        write_json(
            {**shown, **({"key": event.key} if event.key else {}), **({"meta": event.meta} if event.meta else {})}
        )
    else:
        text = msgspec.json.encode(data, enc_hook=str).decode()
        key = f" [{event.key}]" if event.key else ""
        click.echo(f"{one.offset:>8}  {when(event.at)}  {event.topic}{key}  {text}")


def _data(body: bytes, encoding: int) -> Any:
    if encoding == MSGPACK:
        return msgspec.msgpack.decode(body)
    return msgspec.json.decode(body) if encoding == JSON else bytes(body)


@command.command("replay")
@click.argument("subscription", metavar="SERVICE.HANDLER")
@click.option("--offset", type=click.IntRange(0), help="From this offset on.")
@click.option("--since", metavar="WHEN", help="From an instant on: 2h (ago), or 2030-01-31T12:00:00+00:00.")
@json_option
def replay(subscription: str, offset: int | None, since: str | None) -> None:
    """Deliver kept events once more to a durable handler, such as orders.audit.

    Deliveries that are still outstanding stay as they are; nothing is delivered twice for them.
    """
    if (offset is None) == (since is None):
        raise click.UsageError("say where to begin: --offset or --since")
    since_at = None if since is None else _instant(since)

    async def again() -> int:
        async with loop.connected() as n:
            return await n.durable.engines.events.replay(
                subscription, offset=offset, since_at=since_at, timeout_s=n.durable.timeout_s
            )

    count = loop.run(again())
    if wants_json():
        write_json({"subscription": subscription, "events": count})
    else:
        note(f"{subscription}: {count:,} events are delivered again")


def _instant(text: str) -> float:
    if re.fullmatch(r"[\d.]+\s*(ms|s|m|h|d).*", text):
        try:
            return time.time() - read_duration(text)
        except ValueError as exc:
            raise click.UsageError(f'--since: "{text}" is no time like 2h or 1d') from exc
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError as exc:
        raise click.UsageError(f'--since: "{text}" is neither a time like 2h nor an instant in ISO 8601') from exc

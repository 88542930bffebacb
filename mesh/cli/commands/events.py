"""`mesh events`: the log of durable events. Owns: its options. Leaves to others: the log (the engine of events)."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import click
import msgspec

from mesh.cli import loop
from mesh.cli.commands.jobs import when
from mesh.cli.output import for_people, json_option, note, wants_json, write_json, write_table
from mesh.config.values import read_duration
from mesh.errors import BadRequest
from mesh.events.log import LoggedEvent
from mesh.protocol.messages import JSON, MSGPACK
from mesh.tasks.contract import QueueInfo

PAGE = 500


@click.group("events")
@json_option
def command() -> None:
    """Read the log of durable events, deliver events again, list subscriptions, and end those no longer in use."""


@command.command("read")
@click.argument("pattern", default="#")
@click.option("--after", default=0, type=click.IntRange(0), metavar="OFFSET", help="Start after this offset.")
@click.option("--limit", default=100, type=click.IntRange(1), show_default=True, help="At most this many.")
@json_option
def read(pattern: str, after: int, limit: int) -> None:
    """Print kept events with a topic that matches PATTERN (`order.*`, `#` for all), oldest first, one line each."""
    loop.run(_read(pattern, after, limit))


async def _read(pattern: str, after: int, limit: int) -> None:
    async with loop.stored() as n:
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
@click.option("--offset", type=click.IntRange(0), help="Start at this offset.")
@click.option("--since", metavar="WHEN", help="Start at a time: 2h (ago), or 2030-01-31T12:00:00+00:00.")
@json_option
def replay(subscription: str, offset: int | None, since: str | None) -> None:
    """Deliver kept events once more to a durable handler, such as orders.audit.

    Outstanding deliveries stay as they are; their events are not delivered twice.
    """
    if (offset is None) == (since is None):
        raise click.UsageError("give --offset or --since")
    since_at = None if since is None else _instant(since)

    async def again() -> int:
        async with loop.stored() as n:
            return await n.durable.engines.events.replay(
                subscription, offset=offset, since_at=since_at, timeout_s=n.durable.timeout_s
            )

    count = loop.run(again())
    if wants_json():
        write_json({"subscription": subscription, "events": count})
    else:
        note(f"{subscription}: {count:,} events are delivered again")


@command.command("subscriptions")
@json_option
def subscriptions() -> None:
    """List durable handlers: their topics, their positions in the log, and whether a worker runs them.

    A handler without workers prevents the removal of every event that it has not received: start its service, or end
    the subscription with `mesh events abandon`.
    """
    found = loop.run(_subscriptions())
    if wants_json():
        write_json(found)
        return
    if not found:
        note("no durable handler has been started here")
        return
    numbers = ("offset", "behind", "outstanding", "dead", "workers", "oldest")
    rows = [
        (
            one.name,
            " ".join(one.patterns),
            str(one.position),
            *(f"{value:,}" if value else "·" for value in (one.backlog, _outstanding(one), one.dead, one.workers)),
            for_people(one.oldest_s) if one.ready else "·",
        )
        for one in found
    ]
    write_table(("subscription", "hears", *numbers), rows, right=numbers)


async def _subscriptions() -> list[QueueInfo]:
    async with loop.stored() as n:
        queues = await n.durable.work.queues()
        return [queue for queue in queues if queue.patterns]


def _outstanding(one: QueueInfo) -> int:
    """The number of deliveries that have been created and not completed."""
    return one.ready + one.running + one.delayed + one.waiting


@command.command("abandon")
@click.argument("subscription", metavar="SERVICE.HANDLER")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def abandon(subscription: str, yes: bool) -> None:
    """End the subscription of a durable handler that is gone for good, such as orders.audit.

    The handler receives no more events and does not keep events in the log any more; its outstanding events and its
    dead letters are dropped. Refused while a worker runs the handler. If the handler ever comes back, it begins anew.
    """
    known = {one.name: one for one in loop.run(_subscriptions())}
    one = known.get(subscription)
    if one is None:
        raise BadRequest(f"there is no durable subscription {subscription!r}; there are: {', '.join(known) or 'none'}")
    losses = (
        (one.backlog, "events not yet delivered"),
        (_outstanding(one), "outstanding deliveries"),
        (one.dead, "dead letters"),
    )
    dropped = ", ".join(f"{count:,} {what}" for count, what in losses if count) or "nothing outstanding"
    if not yes:
        click.confirm(f"end {subscription}, and drop {dropped}?", abort=True, err=True)

    async def end() -> int:
        async with loop.stored() as n:
            return await n.durable.engines.events.abandon(subscription, timeout_s=n.durable.timeout_s)

    count = loop.run(end())
    if wants_json():
        write_json({"subscription": subscription, "deliveries": count, "events": one.backlog})
    else:
        note(f"{subscription} has ended; dropped: {dropped}")


def _instant(text: str) -> float:
    if re.fullmatch(r"[\d.]+\s*(ms|s|m|h|d).*", text):
        try:
            return time.time() - read_duration(text)
        except ValueError as exc:
            raise click.UsageError(f'--since: "{text}" is not a duration like 2h or 1d') from exc
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError as exc:
        raise click.UsageError(f'--since: "{text}" is neither a duration like 2h nor an instant in ISO 8601') from exc

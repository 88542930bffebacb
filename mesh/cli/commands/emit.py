"""`mesh emit`. Owns: its options. Leaves to others: carrying the event (events, node)."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli import arguments, loop, tracing
from mesh.cli.output import json_option, note, wants_json, write_json
from mesh.cli.tracing import trace_option


@click.command("emit")
@click.argument("topic")
@click.argument("words", nargs=-1, metavar="[DATA]...")
@click.option("--key", metavar="TEXT", help="Events with equal keys go to the same instance of a service.")
@click.option("--meta", multiple=True, metavar="NAME=VALUE", help="Metadata of the event; may be repeated.")
@trace_option
@json_option
def command(topic: str, words: tuple[str, ...], key: str | None, meta: tuple[str, ...], verbose: bool) -> None:
    """Emit an event: publish DATA to all subscribers of TOPIC.

    DATA is one JSON value (or text), or name=value words that form a map:

    \b
      mesh emit order.created id=17 total=9.5
      mesh emit order.created '{"id": 17}'
    """
    positional, named = arguments.read(words)
    if (positional and named) or len(positional) > 1:
        raise click.UsageError("give one value, or name=value words, not both")
    data: Any = named or (positional[0] if positional else None)
    tracing.begin(verbose)
    loop.run(_emit(topic, data, key, arguments.pairs(meta, "--meta") or None))
    if wants_json():
        write_json({"topic": topic, "data": data})
    else:
        note(f"emitted {topic}")


async def _emit(topic: str, data: Any, key: str | None, meta: dict[str, str] | None) -> None:
    async with loop.stored() as n:
        await n.emit(topic, data, key=key, meta=meta)

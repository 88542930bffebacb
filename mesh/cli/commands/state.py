"""`mesh state`: keys and values. Owns: its options. Leaves to others: storing them (the engine of state)."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from mesh.cli import arguments, exits, loop
from mesh.cli.output import json_option, note, wants_json, write_json, write_table, write_value


@click.group("state", invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show every namespace and how many keys it has. With a sub-command, read and write keys."""
    if ctx.invoked_subcommand is not None:
        return

    async def look() -> list[tuple[str, int]]:
        async with loop.stored() as n:
            return await n.durable.engines.state.namespaces(timeout_s=n.durable.timeout_s)

    found = loop.run(look())
    if wants_json():
        write_json(dict(found))
    elif found:
        write_table(("namespace", "keys"), [(name, f"{count:,}") for name, count in found], right=("keys",))
    else:
        note("no state is stored")


@command.command("get")
@click.argument("namespace")
@click.argument("key")
@json_option
def get(namespace: str, key: str) -> int:
    """Print the value of a key; exit code 1 when it is absent."""

    async def look() -> tuple[Any, str]:
        async with loop.stored() as n:
            value = await n.state(namespace).get(key)
            return value[0], value[1]

    value, etag = loop.run(look())
    if wants_json():
        write_json({"value": value, "etag": etag})
    elif etag:
        write_value(value)
        note(f"etag {etag}")
    if not etag:
        note(f"{namespace} has no key {key}")
    return exits.OK if etag else exits.FAILED


@command.command("set")
@click.argument("namespace")
@click.argument("key")
@click.argument("value")
@click.option("--etag", help='Write only if the key has this etag; "": only if the key is absent.')
@click.option("--ttl", type=arguments.Span(), metavar="SPAN", help="Delete the key after this time: 30m, 1d.")
@json_option
def set_(namespace: str, key: str, value: str, etag: str | None, ttl: float | None) -> None:
    """Write a key. VALUE is JSON, or text; @file is the content of a file."""

    async def write() -> str:
        async with loop.stored() as n:
            return await n.state(namespace).set(key, arguments.value(value), etag=etag, ttl=ttl)

    made = loop.run(write())
    if wants_json():
        write_json({"etag": made})
    else:
        note(f"etag {made}")


@command.command("delete")
@click.argument("namespace")
@click.argument("key")
@click.option("--etag", help="Delete only if the key has this etag.")
def delete(namespace: str, key: str, etag: str | None) -> None:
    """Delete a key; no error if it does not exist."""

    async def remove() -> None:
        async with loop.stored() as n:
            await n.state(namespace).delete(key, etag=etag)

    loop.run(remove())


@command.command("keys")
@click.argument("namespace")
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(1), help="At most this many.")
@click.option("--values", is_flag=True, help="Print values as well.")
@json_option
def keys(namespace: str, prefix: str, limit: int | None, values: bool) -> None:
    """Print the keys that begin with PREFIX, in order, one line each."""
    loop.run(_keys(namespace, prefix, limit, values))


async def _keys(namespace: str, prefix: str, limit: int | None, values: bool) -> None:
    left = limit
    async with loop.stored() as n:
        async for key, value in n.state(namespace).items(prefix=prefix):
            if left is not None:
                if left == 0:
                    return
                left -= 1
            if wants_json() or values:
                write_json({"key": key, "value": value} if values else key)
            else:
                click.echo(key)
            await asyncio.sleep(0)

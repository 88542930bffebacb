"""`mesh call`. Owns: its options, and printing answers. Leaves to others: arguments (arguments), the call (node)."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from mesh.calls.answers import decode_any
from mesh.calls.checks import Duration
from mesh.calls.options import CallOptions
from mesh.cli import arguments, exits, loop, tracing
from mesh.cli.commands import completion
from mesh.cli.output import json_option, note, wants_json, write_json, write_value
from mesh.cli.report import more_time
from mesh.cli.tracing import trace_option
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.node.node import Node


@click.command("call")
@click.argument("target", metavar="SERVICE.METHOD", shell_complete=completion.methods)
@click.argument("words", nargs=-1, metavar="[ARGUMENT]...")
@click.option("--timeout", type=arguments.Span(), metavar="SPAN", help="The deadline: 2, 250ms, 1m.")
@click.option("--stream", is_flag=True, help="Expect a stream, even when the registry does not know the method.")
@click.option("--all", "everyone", is_flag=True, help="Call every instance; print the answer of each.")
@click.option("--key", metavar="TEXT", help="Calls with equal keys go to the same instance.")
@click.option("--instance", metavar="ID", help="Call this instance and no other.")
@click.option("--meta", multiple=True, metavar="NAME=VALUE", help="Metadata of the call; may be repeated.")
@click.option("--output", metavar="FILE", help="Write a binary answer to this file.")
@trace_option
@json_option
def command(
    target: str,
    words: tuple[str, ...],
    timeout: float | None,
    stream: bool,
    everyone: bool,
    key: str | None,
    instance: str | None,
    meta: tuple[str, ...],
    output: str | None,
    verbose: bool,
) -> int:
    """Call a method and print its answer; a stream's items as one JSON line each.

    An ARGUMENT is a value, or name=value. JSON is read as JSON, @file is the content of a file:

    \b
      mesh call greeting.hello name=ujun
      mesh call greeting.count 3
      mesh call thumbnails.thumbnail image=@photo.jpg width=200 --output small.jpg
    """
    if "." not in target:
        raise click.UsageError(f"{target!r} is not a method: write SERVICE.METHOD")
    if everyone and (stream or key or instance):
        raise click.UsageError("--all cannot be combined with --stream, --key or --instance")
    options = CallOptions(timeout, key, instance, arguments.pairs(meta, "--meta") or None)
    tracing.begin(verbose)
    with more_time("--timeout"):
        return loop.run(_call(target, words, options, stream=stream, everyone=everyone, output=output))


async def _call(
    target: str,
    words: tuple[str, ...],
    options: CallOptions,
    *,
    stream: bool,
    everyone: bool,
    output: str | None,
) -> int:
    async with loop.connected() as n:
        record = n.method(target)
        positional, named = arguments.read(words, record.params if record else None)
        if everyone:
            return await _scatter(n, target, positional, named, options.timeout)
        # Encode here, so that a parameter may have the name of an option, such as `timeout` or `key`.
        body, encoding = arguments.encode(positional, named, record.params if record else None, target)
        how: dict[str, Any] = {
            "timeout": options.timeout,
            "key": options.key,
            "instance": options.instance,
            "meta": options.meta,
        }
        if stream or (record is not None and record.stream):
            async for item in n.stream_raw(target, body, encoding, **how):
                write_json(_plain(decode_any(item.body, item.encoding)))
            return exits.OK
        raw = await n.call_raw(target, body, encoding, **how)
        answer = decode_any(raw.body, raw.encoding)
    if isinstance(answer, bytes | bytearray | memoryview):
        return _write_binary(bytes(answer), output)
    write_value(_plain(answer))
    return exits.OK


async def _scatter(n: Node, target: str, positional: list[Any], named: dict[str, Any], timeout: Duration | None) -> int:
    failed = False
    for outcome in await n.scatter(target, *positional, timeout=timeout, **named):
        told: dict[str, Any] = {"instance": outcome.instance.id}
        if outcome.error is not None:
            failed = True
            error = outcome.error
            told["error"] = error.to_wire() if isinstance(error, MeshError) else {"message": str(error)}
        else:
            told["value"] = _plain(outcome.value)
        write_json(told)
    return exits.FAILED if failed else exits.OK


def _plain(value: Any) -> Any:
    """The answer with the bytes inside it as base64, like JSON over HTTP."""
    return msgspec.to_builtins(value, enc_hook=_encode)


def _encode(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, memoryview) else str(value)


def _write_binary(body: bytes, output: str | None) -> int:
    if output is not None:
        Path(output).write_bytes(body)
        note(f"{output}: {len(body)} bytes")
    elif wants_json():
        write_json(base64.b64encode(body).decode())
    elif sys.stdout.isatty():
        raise click.UsageError(f"the answer is {len(body)} bytes of binary data: give --output FILE, or a pipe")
    else:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
    return exits.OK

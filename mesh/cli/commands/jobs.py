"""`mesh jobs`. Owns: its options, and printing a job. Leaves to others: finding them (engines.work_view)."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

import click
import msgspec

from mesh.cli import arguments, exits, loop
from mesh.cli.output import json_option, note, wants_json, write_json, write_value
from mesh.cli.report import more_time
from mesh.errors import UnknownJob
from mesh.protocol.messages import JSON
from mesh.tasks.contract import JobInfo
from mesh.tasks.deferring import encoding_of


@click.group("jobs")
@json_option
def command() -> None:
    """Show a job, wait for it, or cancel it. A job is an enqueued task; `mesh tasks` shows the queues."""


@command.command("show")
@click.argument("id")
@click.option("--wait", type=arguments.Span(), metavar="SPAN", help="Wait up to this time for the job to end.")
@json_option
def show(id: str, wait: float | None) -> int:
    """Show a job: its status, attempts, answer or last error. Exit code 1 when it is dead or cancelled."""
    info = loop.run(_show(id, wait))
    write_job(info)
    return exits.FAILED if info.status in ("dead", "cancelled") else exits.OK


async def _show(id: str, wait: float | None) -> JobInfo:
    async with loop.stored() as n:
        if wait:
            with more_time("--wait"):
                return await n.durable.work.wait(id, wait)
        found = await n.durable.work.find(id)
        if found is None:
            raise UnknownJob(f"there is no job {id}: the id is wrong, or its retention is over")
        return found


@command.command("cancel")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@json_option
def cancel(ids: tuple[str, ...]) -> None:
    """Cancel jobs that are not finished; a running handler is cancelled."""
    loop.run(_cancel(ids))


async def _cancel(ids: tuple[str, ...]) -> None:
    async with loop.stored() as n:
        for id in ids:
            info = await n.durable.work.cancel(id)
            if wants_json():
                write_json({"id": info.id, "status": info.status})
            else:
                note(f"{info.id}: {'stopping' if info.status == 'running' else info.status}")


def plain(info: JobInfo) -> dict[str, Any]:
    """A job as plain values: arguments and answer decoded, empty values left out."""
    shown = {name: value for name, value in msgspec.to_builtins(info, builtin_types=(bytes,)).items() if value}
    if "result" in shown:
        shown["result"] = value_of(shown["result"])
    if "body" in shown:
        body = shown.pop("body")
        shown["arguments"] = (
            json.loads(body, parse_float=arguments.exact_number) if encoding_of(body) == JSON else value_of(body)
        )
    return shown


def value_of(packed: bytes) -> Any:
    """A MessagePack value, decoded for display; in base64 when it cannot be decoded."""
    try:
        return msgspec.msgpack.decode(packed)
    except msgspec.DecodeError:
        return {"base64": base64.b64encode(packed).decode()}


def write_job(info: JobInfo) -> None:
    """Write a job to stdout."""
    shown = plain(info)
    if wants_json():
        write_json(shown)
        return
    traceback = shown.pop("traceback", "")
    result = shown.pop("result", None)
    for name in ("created_at", "due_at", "finished_at", "ends_at", "at"):
        if name in shown:
            shown[name] = when(shown[name])
    for name, value in shown.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
        click.echo(f"{name.replace('_', ' '):12} {text if len(text) <= 2000 else text[:2000] + '…'}")
    if traceback:
        click.echo("\n" + traceback.rstrip())
    if info.status == "done":
        click.echo("answer")
        write_value(result)


def when(wall: float) -> str:
    """An instant in this machine's time zone."""
    return datetime.fromtimestamp(wall).astimezone().isoformat(sep=" ", timespec="seconds")

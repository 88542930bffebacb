"""`mesh defer`. Owns: its options. Leaves to others: arguments (arguments), deferring (node.durable)."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli import arguments, exits, loop, tracing
from mesh.cli.commands import completion
from mesh.cli.commands.jobs import write_job
from mesh.cli.output import json_option, note, wants_json, write_json
from mesh.cli.report import more_time
from mesh.cli.tracing import trace_option
from mesh.tasks.deferring import Options
from mesh.tasks.job import Job


@click.command("defer")
@click.argument("target", metavar="SERVICE.TASK", shell_complete=completion.tasks)
@click.argument("words", nargs=-1, metavar="[ARGUMENT]...")
@click.option(
    "--key",
    default="",
    metavar="TEXT",
    help="Idempotency key: of two jobs with the same task and key, only the first is created.",
)
@click.option(
    "--order", default="", metavar="TEXT", help="Ordering key: jobs with the same task and key run one after the other."
)
@click.option(
    "--delay", type=arguments.Span(), metavar="SPAN", help="Do not start before this time has passed: 30s, 5m, 2d."
)
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9; higher runs first.")
@click.option(
    "--wait",
    type=arguments.Span(),
    metavar="SPAN",
    help="Wait up to this time for the job to end, and show its answer.",
)
@trace_option
@json_option
def command(
    target: str,
    words: tuple[str, ...],
    key: str,
    order: str,
    delay: float | None,
    priority: int | None,
    wait: float | None,
    verbose: bool,
) -> int:
    """Enqueue a background task; print the id of its job when that is durable.

    An ARGUMENT is a value, or name=value, as for `mesh call`:

    \b
      mesh defer orders.charge order_id=o-17 --key charge-o-17
      mesh defer mail.send to=you@example.org --delay 1h
      mesh defer textstats.count @book.txt --wait 1m
    """
    if "." not in target:
        raise click.UsageError(f"{target!r} is not a task: write SERVICE.TASK")
    tracing.begin(verbose)
    return loop.run(_defer(target, words, Options(key=key, order=order, delay=delay, priority=priority), wait))


async def _defer(target: str, words: tuple[str, ...], options: Options, wait: float | None) -> int:
    async with loop.connected() as n:
        service, _, name = target.rpartition(".")
        record = next((one.tasks[name] for one in n.instances(service) if name in one.tasks), None)
        positional, named = arguments.read(words, record.params if record else None)
        async with loop.awaiting_store(n):
            body, _ = arguments.encode(positional, named, record.params if record else None, target)
            job: Job[Any] = await n.durable.defer_encoded(target, body, options)
        if wait is None:
            if wants_json():
                write_json({"id": job.id, "task": target})
            else:
                click.echo(job.id)
                note(f"deferred {target}; mesh jobs show {job.id}")
            return exits.OK
        with more_time("--wait"):
            info = await job.wait(wait)
        write_job(info)
        return exits.OK if info.status == "done" else exits.FAILED

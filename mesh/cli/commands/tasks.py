"""`mesh tasks`: queues, and their dead letters.

Owns: its options, and the tables. Leaves to others: the queues (engines.work_view), one job (jobs).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import click

from mesh.cli import exits, loop
from mesh.cli.commands import completion
from mesh.cli.commands.jobs import plain, when, write_job
from mesh.cli.output import for_people, json_option, note, wants_json, write_json, write_table
from mesh.errors import UnknownJob
from mesh.tasks.contract import JobInfo, QueueInfo

if TYPE_CHECKING:
    from mesh.node.node import Node

#: The number of jobs in one request.
PAGE = 200


@click.group("tasks", invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show every queue of tasks and every durable subscription: the waiting, running and dead jobs of each.

    The sub-commands handle dead letters: failed tasks that are not retried, kept for inspection.
    """
    if ctx.invoked_subcommand is None:
        _write_queues(loop.run(_queues()))


async def _queues() -> list[QueueInfo]:
    async with loop.stored() as n:
        return await n.durable.work.queues()


def _write_queues(queues: list[QueueInfo]) -> None:
    if wants_json():
        write_json(queues)
        return
    if not queues:
        note("no task has been enqueued here, and no worker runs any")
        return
    numbers = ("ready", "running", "delayed", "waiting", "dead", "done", "workers", "oldest")
    rows = [
        (
            queue.name,
            *(f"{value:,}" if value else "·" for value in _counts(queue)),
            for_people(queue.oldest_s) if queue.ready else "·",
            _limits(queue),
        )
        for queue in queues
    ]
    write_table(("queue", *numbers, "limits"), rows, right=numbers)


def _counts(queue: QueueInfo) -> tuple[int, ...]:
    ready = queue.ready + queue.backlog
    return ready, queue.running, queue.delayed, queue.waiting, queue.dead, queue.done, queue.workers


def _limits(queue: QueueInfo) -> str:
    said = []
    if queue.rate_per_s:
        said.append(f"{queue.rate_per_s:g}/s")
    if queue.concurrency:
        said.append(f"{queue.concurrency} at once")
    if queue.patterns:
        said.append(f"subscribes to {' '.join(queue.patterns)}")
    return ", ".join(said)


# --- dead letters ---------------------------------------------------------------------------------------


@command.group("dead")
def dead() -> None:
    """Dead letters, which are not retried: list, show, requeue and drop them."""


@dead.command("list")
@click.argument("queue", required=False, metavar="[SERVICE.TASK]", shell_complete=completion.tasks)
@click.option("--limit", default=50, type=click.IntRange(1), show_default=True, help="At most this many per queue.")
@json_option
def list_(queue: str | None, limit: int) -> None:
    """List the dead letters of one queue, or of all queues, oldest first."""
    loop.run(_list(queue, limit))


async def _list(queue: str | None, limit: int) -> None:
    async with loop.stored() as n:
        names = [queue] if queue else [one.name for one in await _all(n) if one.dead]
        rows: list[tuple[str, ...]] = []
        for name in names:
            async for job in _dead(n, name, limit):
                if wants_json():
                    write_json(plain(job))
                else:
                    rows.append((job.id, job.queue, str(job.attempt), when(job.finished_at), job.reason, _line(job)))
    if wants_json():
        return
    if rows:
        write_table(("job", "task", "attempts", "died", "reason", "error"), rows, right=("attempts",))
    else:
        note("no dead letters")


def _line(job: JobInfo) -> str:
    first = job.error.partition("\n")[0]
    return first if len(first) <= 100 else first[:100] + "…"


@dead.command("show")
@click.argument("id")
@json_option
def show(id: str) -> int:
    """Show a dead letter: its arguments, its last error, and where the error was raised."""

    async def look() -> JobInfo:
        async with loop.stored() as n:
            found = await n.durable.work.find(id)
            if found is None:
                raise UnknownJob(f"there is no job {id}: the id is wrong, or its retention is over")
            return found

    info = loop.run(look())
    write_job(info)
    if info.status != "dead":
        note(f"it is not a dead letter, it is {info.status}")
    return exits.OK


@dead.command("requeue")
@click.argument("queue", metavar="SERVICE.TASK", shell_complete=completion.tasks)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that are dead in this queue.")
@json_option
def requeue(queue: str, ids: tuple[str, ...], everything: bool) -> None:
    """Requeue dead letters: they run again, and their attempts are counted from 1."""
    _check(ids, everything)

    async def mend() -> int:
        async with loop.stored() as n:
            return await n.durable.work.requeue(queue, ids)

    _tell("requeued", queue, loop.run(mend()))


@dead.command("drop")
@click.argument("queue", metavar="SERVICE.TASK", shell_complete=completion.tasks)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that are dead in this queue.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def drop(queue: str, ids: tuple[str, ...], everything: bool, yes: bool) -> None:
    """Delete dead letters permanently."""
    _check(ids, everything)
    if everything and not yes:
        click.confirm(f"delete every dead letter of {queue}?", abort=True, err=True)

    async def forget() -> int:
        async with loop.stored() as n:
            return await n.durable.work.drop(queue, ids)

    _tell("dropped", queue, loop.run(forget()))


def _check(ids: tuple[str, ...], everything: bool) -> None:
    if bool(ids) == everything:
        raise click.UsageError("give ids of jobs, or --all")


def _tell(done: str, queue: str, count: int) -> None:
    if wants_json():
        write_json({"queue": queue, done: count})
    else:
        note(f"{queue}: {count:,} {done}")


async def _all(n: Node) -> list[QueueInfo]:
    return await n.durable.work.queues()


async def _dead(n: Node, queue: str, limit: int) -> AsyncIterator[JobInfo]:
    after = ""
    while limit > 0:
        page = await n.durable.work.page(queue, "dead", after=after, limit=min(PAGE, limit))
        for job in page:
            yield job
        if not page:
            return
        after = page[-1].id
        limit -= len(page)

"""`mesh roll`. Owns: its options and what it prints. Leaves to others: doing it (deploy.roll)."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli import canary_roll, loop, process, setting
from mesh.cli.commands import completion
from mesh.cli.output import json_option, note, progress, wants_json, write_json


@click.command("roll")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=completion.services)
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one replacement may take to become ready.",
)
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a replacement must run before the next step.",
)
@click.option(
    "--gate",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to compare the error rate of replaced processes with the one before; 0: do not.",
)
@click.option(
    "--gate-errors",
    type=click.FloatRange(min=0, max=100),
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="Share of calls that may fail, unless more failed before.",
)
@click.option(
    "--gate-calls",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="NUMBER",
    help="With fewer calls, error rates are not compared.",
)
@click.option("--preflight/--no-preflight", default=True, help="Try to import each service beforehand.")
@click.option("--check", is_flag=True, help="Only try the imports; change nothing.")
@canary_roll.canary_options
@json_option
def command(
    names: tuple[str, ...],
    conf: str | None,
    timeout: float,
    settle: float,
    gate: float,
    gate_errors: float,
    gate_calls: int,
    preflight: bool,
    check: bool,
    **canary: Any,
) -> None:
    """Replace running processes with the current mesh.toml, supervisord.conf and code: all of them, or those named.

    \b
      mesh roll                  hub, store, then services and gateways
      mesh roll orders gateway   those
      mesh roll orders --canary 5%     by traffic share, compared with the old release
      mesh roll orders --mirror 10%    copies of calls; their answers are only compared
      mesh roll orders --abort         back to the old release

    For each service and for the gateways, a spare process is started first, and must become ready. Then each process
    in turn finishes its work, ends, and is started again; at the end the spare process leaves. So there are never fewer
    processes than before, and no request is refused. Of many processes, a quarter are replaced at a time. Services are
    rolled in parallel.

    The hub is restarted: calls go on, and only processes that start in that second wait for it. The store hands over
    to a new store that waits already: writers wait for a tenth of a second.

    The classes of each service are imported beforehand, in a separate process: when an import fails, nothing changes.

    When a process does not become ready, the whole roll goes back: the replaced processes get their earlier settings
    and release again. Then the exit code is 1, and the last lines show which process failed and its output. The roll
    also goes back when replaced processes answer calls with errors (other than those that a service declares), and
    after Ctrl-C or SIGTERM. A second signal ends the command at once; then `mesh up` brings all processes in line.

    With --canary, additional processes of the new release get a share of the calls of one service; a user or key stays
    on one release. Error rates and durations of both are compared by a test that may be read at any time. When the new
    release is found to be worse, it ends. When an excess of failures above --margin is excluded, and --step-time has
    passed, the next share follows; in the end all processes are replaced. When this command is killed, the share ends
    by itself.
    """
    import os

    from mesh.deploy.error_gate import Limits
    from mesh.deploy.roll import roll
    from mesh.doctor.preflight import preflight as try_all

    settings = setting.settings()
    limits = Limits(gate, gate_errors / 100, gate_calls)
    by_share = canary_roll.is_asked(canary)
    if by_share:
        names = (canary_roll.service_of(names),)
        wanted = canary_roll.plan(canary, timeout, settle, limits)
    if canary["abort"]:
        canary_roll.end(setting.layout(conf), settings, names[0])
        return
    if preflight or check:
        tried = loop.run(try_all(settings, os.environ, names))
    if check:
        note(f"{tried} services can start")
        return
    layout = setting.layout(conf)
    process.quiet()
    if by_share:
        canary_roll.run(layout, settings, names[0], wanted)
        return
    with progress("rolling") as tell:
        done = loop.run(roll(layout, settings, names, patience_s=timeout, settle_s=settle, gate=limits, tell=tell))
    if wants_json():
        write_json([{**each._asdict(), "seconds": round(each.seconds, 3)} for each in done])
        return
    for each in done:
        note(
            f"{each.name}: {each.replaced} replaced in {each.seconds:.1f} s"
            if each.replaced
            else f"{each.name}: no process was running"
        )

"""`mesh scale`. Owns: its arguments, options and output. Leaves to others: doing it (deploy.scale)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mesh.cli import loop, process, setting
from mesh.cli.commands import completion
from mesh.cli.output import json_option, note, progress, wants_json, write_json, write_table

if TYPE_CHECKING:
    from mesh.supervisord.layout import Layout

DECLARED = "declared"


@click.command("scale")
@click.argument("changes", nargs=-1, metavar="[NAME=N]...", shell_complete=completion.scalable)
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long new workers may take to become ready.",
)
@json_option
def command(changes: tuple[str, ...], conf: str | None, timeout: float) -> None:
    """Change the number of workers of a service, or of gateways; without arguments, show these numbers.

    New processes start in groups, two per core, and must become ready; if one does not, or after Ctrl-C, all new
    processes leave again. Surplus processes finish their work, then leave. No other process is touched.

    \b
      mesh scale greeting=5 thumbnails=1 gateway=3
      mesh scale greeting=declared      as many as mesh.toml says
      mesh scale autoscale=0            turns autoscaling off

    The number is kept in replicas.json beside the program files (run/programs). It survives `mesh down` and restarts of
    supervisord, and applies until the number in mesh.toml changes.
    """
    layout = setting.layout(conf)
    if not changes:
        _show(layout)
        return
    from mesh.deploy.scale import check_names, scale
    from mesh.supervisord.roster import Roster

    settings = setting.settings()
    roster = Roster(layout, settings)
    asked = dict(_change(each) for each in changes)
    check_names(roster, asked)
    wanted = {name: roster.roles[name].declared if count is None else count for name, count in asked.items()}
    process.quiet()
    with progress("scaling") as tell:
        done = loop.run(scale(layout, settings, wanted, patience_s=timeout, tell=tell))
    if wants_json():
        write_json([each._asdict() for each in done])
        return
    for each in done:
        if not each.running:
            was = f"nothing runs; the next `mesh up` starts {each.after}"
        else:
            was = f"{each.before} → {each.after}" if each.before != each.after else f"{each.after} already"
        kept = "" if each.after == each.declared else f" (mesh.toml says {each.declared}; kept until that changes)"
        note(f"{each.name}: {was}{kept}")
        service = settings.services.get(each.name)
        if service and service.maximum:
            span = f"between {service.minimum} and {service.maximum}"
            if service.minimum <= each.after <= service.maximum:
                note(f"{each.name} is scaled by load, {span} (mesh autoscale)")
            else:
                note(f"[services.{each.name}] is scaled by load, {span}: autoscaling will change the number again")


def _change(text: str) -> tuple[str, int | None]:
    name, equals, number = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{text!r}: write NAME=N, like greeting=5")
    if number == DECLARED:
        return name, None
    if not number.isdigit():
        raise click.UsageError(f"{text!r}: {number!r} is neither a number of workers nor {DECLARED!r}")
    return name, int(number)


def _show(layout: Layout) -> None:
    from mesh.errors import Unavailable
    from mesh.supervisord.control import RUNNING, Control
    from mesh.supervisord.roster import Roster

    settings = setting.settings()
    roster = Roster(layout, settings)
    control = Control(layout.socket)
    try:
        processes = control.processes()
    except Unavailable:
        processes = []
    finally:
        control.close()
    rows = []
    for name, role in roster.roles.items():
        service = settings.services.get(name)
        rows.append(
            {
                "name": name,
                "running": sum(each.program == name and each.state == RUNNING for each in processes),
                "wanted": roster.count(name),
                "declared": role.declared,
                "minimum": service.minimum if service and service.maximum else None,
                "maximum": service.maximum if service and service.maximum else None,
            }
        )
    if wants_json():
        write_json(rows)
        return
    columns = ("name", "running", "wanted", "declared", "minimum", "maximum")
    shown = [tuple("–" if row[column] is None else str(row[column]) for column in columns) for row in rows]
    write_table(columns, shown, right=columns[1:])

"""`mesh up`. Owns: its options and what it prints. Leaves to others: doing it (supervision.up)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mesh.cli import setting
from mesh.cli.output import for_people, json_option, note, progress, write_json, write_table

if TYPE_CHECKING:
    from mesh.supervision.layout import Layout
    from mesh.supervision.up import Up


@click.command("up")
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until everything answers.",
)
@json_option
def command(conf: str | None, timeout: float) -> None:
    """Start everything under supervisor and wait until it answers.

    When it runs already, whatever was stopped is started; then what runs is shown.
    """
    from mesh.cli.output import wants_json
    from mesh.supervision.up import bring_up

    layout = setting.layout(conf)
    with progress("starting") as tell:
        up = bring_up(layout, patience_s=timeout, tell=tell)
    if wants_json():
        write_json(_as_data(layout, up))
        return
    write_table(
        ("process", "state", "pid", "up", "instance", "log"),
        [
            (
                process.name,
                process.state,
                str(process.pid),
                for_people(process.up_s),
                ", ".join(str(each.get("id", "")) for each in up.instances.get(process.pid, ())),
                process.log.removeprefix(f"{layout.root}/"),
            )
            for process in up.processes
        ],
        right=("pid", "up"),
    )
    note(f"up already; looked in {up.seconds:.1f} s" if up.already else f"up in {up.seconds:.1f} s")
    if layout.http:
        note(f"try:  curl {layout.http}{up.path}")
    note("stop: mesh down")


def _as_data(layout: Layout, up: Up) -> dict[str, Any]:
    return {
        "already": up.already,
        "seconds": round(up.seconds, 3),
        "http": layout.http,
        "processes": [
            {**process._asdict(), "instances": up.instances.get(process.pid, [])} for process in up.processes
        ],
    }

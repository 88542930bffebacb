"""`mesh down`. Owns: its options and what it prints. Leaves to others: doing it (deploy.down)."""

from __future__ import annotations

import click

from mesh.cli import setting
from mesh.cli.output import json_option, note, progress, wants_json, write_json


@click.command("down")
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@json_option
def command(conf: str | None) -> None:
    """Stop everything; leave no process and no socket behind.

    Each process finishes its work, within its own stop timeout. Leftovers of a crash are cleaned up, too.

    This command reads supervisord.conf only: an invalid mesh.toml does not prevent it from stopping everything.
    """
    from mesh.deploy.down import take_down

    layout = setting.layout(conf)
    found = setting.usable()
    for complaint in found.complaints:
        note(complaint)
    if found.complaints:
        note("supervisord.conf says what to stop; fix mesh.toml before the next `mesh up`")
    run_dir = found.settings.mesh.run_dir if found.read else layout.socket.parent
    with progress("stopping") as tell:
        down = take_down(layout, run_dir, tell=tell)
    if wants_json():
        write_json(
            {
                "processes": down.processes,
                "seconds": round(down.seconds, 3),
                "removed": [str(path) for path in down.removed],
                "left": [str(path) for path in down.left],
            }
        )
        return
    if down.processes:
        note(f"down: {down.processes} processes stopped in {down.seconds:.1f} s")
    else:
        note("nothing runs")
    for path in down.removed:
        note(f"removed {path}, which no process uses")
    for path in down.left:
        note(f"did not remove {path}: a process that supervisor did not start listens on it")

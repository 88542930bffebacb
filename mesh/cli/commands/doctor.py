"""`mesh doctor`. Owns: its output and its exit code. Leaves to others: the checks (doctor.doctor)."""

from __future__ import annotations

from typing import Final

import click

from mesh.cli import exits, loop, process, setting
from mesh.cli.output import json_option, note, wants_json, write_json

_MARKS: Final = {"good": ("✓", "green"), "odd": ("!", "yellow"), "bad": ("✗", "red")}


@click.command("doctor")
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@json_option
def command(conf: str | None) -> int:
    """Find problems of this set-up, and show how to fix them. It changes nothing.

    The exit code is 1 when there is a problem (✗), 0 when there are only warnings (!).
    """
    from mesh.doctor.doctor import examine
    from mesh.doctor.finding import BAD, GOOD, ODD, Finding

    process.quiet()
    project = setting.usable()
    found: list[Finding] = []

    async def look() -> None:
        async for finding in examine(setting.conf_file(conf), project, named=conf is not None):
            found.append(finding)
            if not wants_json():
                _tell(finding.grade, finding.about, finding.told, finding.mend)

    loop.run(look())
    bad = sum(each.grade == BAD for each in found)
    odd = sum(each.grade == ODD for each in found)
    if wants_json():
        write_json([each._asdict() for each in found])
    elif bad:
        note(f"{bad} to fix" + (f", {odd} to note" if odd else ""))
    elif odd:
        note(f"nothing to fix, {odd} to note")
    else:
        note(f"no problems: {sum(each.grade == GOOD for each in found)} checks passed")
    return exits.FAILED if bad else exits.OK


def _tell(grade: str, about: str, told: str, mend: str) -> None:
    mark, colour = _MARKS[grade]
    first, *rest = told.splitlines() or [""]
    click.echo(f"{click.style(mark, fg=colour)} {about}: {first}")
    for line in rest:
        click.echo(f"    {line}")
    if mend and grade != "good":
        click.echo(f"    → {mend}")

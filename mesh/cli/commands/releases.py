"""`mesh releases`. Owns: its options and what it prints. Leaves to others: reading them (deploy.releases)."""

from __future__ import annotations

import time

import click

from mesh.cli import setting
from mesh.cli.output import json_option, note, wants_json, write_json, write_table


@click.command("releases")
@click.option(
    "--turns", type=click.IntRange(min=0), default=20, show_default=True, help="How many deployments to show."
)
@json_option
def command(turns: int) -> None:
    """Show the releases of this host, and its deployments: who, what, when, and with what result.

    For hosts that the playbooks deploy to (docs/operating.md).
    """
    from mesh.deploy import releases

    found = releases.read(setting.layout(None), turns)
    if wants_json():
        write_json(
            {
                "releases": [each._asdict() for each in found.releases],
                "unfinished": found.unfinished,
                "turns": found.turns,
            }
        )
        return
    write_table(
        ("release", "current", "good since"),
        [(each.name, "current" if each.current else "", _day(each.good_at)) for each in found.releases],
    )
    if found.unfinished is not None:
        note(f"a deployment that replaces {found.unfinished or 'nothing'} was interrupted or is in progress")
    names = ("at", "result", "release", "before", "playbook", "who", "seconds")
    write_table(names, [tuple(str(turn.get(name, "")) for name in names) for turn in found.turns], right=("seconds",))


def _day(at: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at is not None else "–"

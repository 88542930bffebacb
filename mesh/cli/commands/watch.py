"""`mesh watch`, which supervisor runs.

Owns: its registration with supervisor. Leaves to others: watching (supervisord.watch).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from mesh.cli import process, setting


@click.command("watch")
def command() -> None:
    """Run as supervisor's event listener: report crashes, and slow down crash loops.

    [eventlistener:watch] in supervisord.conf starts this command.
    """
    from mesh.supervisord.control import Control
    from mesh.supervisord.roster import of as roster_of
    from mesh.supervisord.watch import Watch, listen
    from mesh.supervisord.watch_metrics import ROLE, WatchMetrics
    from mesh.telemetry import crashes
    from mesh.telemetry.published import withdraw

    url = os.environ.get("SUPERVISOR_SERVER_URL", "")
    if not url.startswith("unix://") or sys.stdin.isatty():
        raise click.UsageError(
            "only supervisor runs this, as [eventlistener:watch]; `mesh ps` shows the crashes that it detects"
        )
    settings = setting.settings()
    process.prepare(settings, "watch")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    control = Control(Path(url.removeprefix("unix://")))
    run_dir = settings.mesh.run_dir
    layout = setting.layout(None)
    programs = layout.programs
    ground = {name for program in programs if program.verb in ("hub", "store") for name in program.processes}
    roster = roster_of(layout, settings)
    metrics = WatchMetrics(
        control, run_dir, lambda: {name: roster.count(name) for name in roster.roles} if roster is not None else {}
    )
    try:
        listen(Watch(control, run_dir, ground, metrics=metrics), sys.stdin.buffer, sys.stdout.buffer)
    finally:
        crashes.remove(run_dir)
        withdraw(run_dir, ROLE)
        control.close()

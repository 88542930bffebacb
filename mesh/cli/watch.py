"""`mesh watch`, which supervisor runs.

Owns: its place in supervisor. Leaves to others: watching (supervision.watch).
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
    """Be supervisor's event listener: tell of crashes, and slow down crash loops.

    It is started by [eventlistener:watch] in supervisord.conf.
    """
    from mesh.supervision.control import Control
    from mesh.supervision.watch import Watch, listen
    from mesh.telemetry import crashes

    url = os.environ.get("SUPERVISOR_SERVER_URL", "")
    if not url.startswith("unix://") or sys.stdin.isatty():
        raise click.UsageError("this is for supervisor's [eventlistener:watch]; `mesh ps` shows what it sees")
    settings = setting.settings()
    process.prepare(settings, "watch")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    control = Control(Path(url.removeprefix("unix://")))
    run_dir = settings.mesh.run_dir
    programs = setting.layout(None).programs
    ground = {name for program in programs if program.verb in ("hub", "store") for name in program.processes}
    try:
        listen(Watch(control, run_dir, ground), sys.stdin.buffer, sys.stdout.buffer)
    finally:
        crashes.remove(run_dir)
        control.close()

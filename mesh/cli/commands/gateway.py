"""`mesh gateway`. Owns: its options. Leaves to others: HTTP (gateway.app)."""

from __future__ import annotations

import os
import stat

import click

from mesh.cli import loop, process, setting
from mesh.cli.output import json_option, wants_json, write_json


@click.command("gateway")
@click.option("--fd", type=click.IntRange(min=0), metavar="N", help="Use this open, listening socket.")
@click.option("--host", metavar="ADDRESS", help="Listen on this address.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="Listen on this port.")
@click.option("--check", is_flag=True, help="Only load the mounts and check that they can be used.")
@json_option
def command(fd: int | None, host: str | None, port: int | None, check: bool) -> None:
    """Run the HTTP front end, until SIGTERM or Ctrl-C.

    Under supervisor it inherits the listening socket as file descriptor 0: `mesh gateway --fd 0`.
    """
    from mesh.gateway import app

    if check:
        settings = setting.settings(gateway__host=host, gateway__port=port)
        prefixes = loop.run(app.check(settings))
        if wants_json():
            write_json({"mounts": prefixes})
        else:
            click.echo(f"mounts: {', '.join(prefixes) or 'none but the built-in ones'}")
        return
    if fd is not None:
        _check_socket(fd)
    settings = setting.settings(gateway__host=host, gateway__port=port)
    process.prepare(settings, "gateway")
    loop.run(app.serve(settings, fd=fd, host=host, port=port))


def _check_socket(fd: int) -> None:
    try:
        listens = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        listens = False
    if not listens:
        raise click.UsageError(
            f"--fd {fd}: not a socket; the option is for supervisor's [fcgi-program:…], use --port at a terminal"
        )

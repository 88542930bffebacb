"""`mesh hub`. Owns: its options. Leaves to others: the hub (discovery.hub)."""

from __future__ import annotations

import click

from mesh.cli import loop, process, setting
from mesh.cli.output import json_option


@click.command("hub")
@click.option(
    "--endpoint", metavar="ENDPOINT", default="", help="The address to listen on: ipc:///path or tcp://host:port."
)
@json_option
def command(endpoint: str) -> None:
    """Run the hub, which keeps the registry, until SIGTERM or Ctrl-C.

    It listens on the first address of [mesh] hubs that can be bound here. Any number of hubs may run.
    """
    from mesh.discovery.serve import serve

    settings = setting.settings()
    process.prepare(settings, "hub")
    loop.run(serve(settings, endpoint))

"""`mesh new`. Owns: its options and what it prints. Leaves to others: the files (scaffold)."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mesh.cli import scaffold
from mesh.cli.output import json_option, note, wants_json, write_json


@click.command("new")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", metavar="NAME", help="The name of the project and its service; by default the directory's.")
@json_option
def command(directory: Path, name: str | None) -> None:
    """Make a project in DIRECTORY: a service with its test, the settings, and an inventory for Ansible.

    DIRECTORY must not exist or be empty. Its name is that of the project: small letters, digits, _ and -.

    \b
      mesh new shop && cd shop
      mesh dev
    """
    root = Path(os.path.abspath(directory))
    names = scaffold.names(name if name is not None else root.name)
    written = scaffold.write(root, names)
    if wants_json():
        write_json({"path": str(root), "service": names.package, "files": [str(path) for path in written]})
        return
    note(f"made {root}: {len(written)} files, the service {names.package} in {names.package}/service.py")
    if root != Path.cwd():
        note(f"      cd {directory}")
    note("run:  mesh dev            everything in one process, restarted when a file is saved")
    note("      mesh up             separate processes under supervisor")
    note("test: pytest              needs pytest and pytest-asyncio")

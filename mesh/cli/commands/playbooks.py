"""`mesh playbooks`. Owns: finding the directory. Leaves to others: what the playbooks do (docs/operating.md)."""

from __future__ import annotations

from pathlib import Path

import click

import mesh
from mesh.cli.output import json_option, wants_json, write_json
from mesh.errors import SetupError


def directory() -> Path:
    """The directory of the playbooks: part of the installed package, or beside it in a checkout.

    Raises:
        SetupError: this installation has none.
    """
    package = Path(mesh.__file__).resolve().parent
    for found in (package / "playbooks", package.parent / "playbooks"):
        if (found / "deploy.yml").is_file():
            return found
    raise SetupError(f"there are no playbooks in {package / 'playbooks'}: reinstall zeromesh")


@click.command("playbooks")
@json_option
def command() -> None:
    """Print the directory of the Ansible playbooks.

    Ansible must be installed (pip install ansible-core), and the inventory must set mesh_project, as that of a project
    from `mesh new` does.

    \b
      ansible-playbook -i inventory/local "$(mesh playbooks)/deploy.yml"
    """
    found = directory()
    write_json({"path": str(found)}) if wants_json() else click.echo(found)

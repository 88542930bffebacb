"""`mesh users`. Owns: its options and output. Leaves to others: the users (gateway.edge.auth.passwords)."""

from __future__ import annotations

import sys
import time

import click

from mesh.cli.credentials import advise, check_name, file_of, file_option, moment, rights_options
from mesh.cli.output import json_option, note, wants_json, write_json, write_table


@click.group("users", context_settings={"help_option_names": ["-h", "--help"]})
@json_option
def command() -> None:
    """Add, list and remove the users of internal tools, who log in with a password (HTTP Basic).

    The file of [auth.basic] holds a slow hash of each password. Running gateways see a change within a second; copy the
    file to every host with gateways.

    \b
      mesh users add ann --roles operator
      curl --user ann https://mesh.example/metrics
    """


@command.command("add")
@click.argument("name")
@rights_options
@click.option("--replace", is_flag=True, help="Give a user that exists this password, and these scopes and roles.")
@file_option("basic")
@json_option
def add(name: str, scopes: list[str], roles: list[str], tenant: str, replace: bool, file: str | None) -> None:
    """Add a user. The password is asked for; without a terminal it is the first line of stdin."""
    from mesh.gateway.edge.auth import passwords

    if not check_name(name).strip() or ":" in name:
        raise click.UsageError("NAME: is empty or has a colon, which separates name and password in HTTP Basic")
    where = file_of("basic", file)
    passwords.add(
        where.path,
        name,
        _password(),
        scopes=scopes,
        roles=roles,
        tenant=tenant,
        now=time.time(),
        replace=replace,
    )
    if wants_json():
        write_json({"name": name, "scopes": scopes, "roles": roles, "tenant": tenant})
    else:
        note(f"added {name} to {where.path}")
    advise(where)


@command.command("list")
@file_option("basic")
@json_option
def show(file: str | None) -> None:
    """Show every user, and what it may do."""
    from mesh.gateway.edge.auth import passwords

    users = passwords.listed(file_of("basic", file).path)
    if wants_json():
        write_json(
            [
                {
                    "name": user.name,
                    "scopes": user.scopes,
                    "roles": user.roles,
                    "tenant": user.tenant,
                    "created_at": user.created_at,
                }
                for user in users
            ]
        )
        return
    write_table(
        ("name", "scopes", "roles", "tenant", "password of"),
        [
            (user.name, " ".join(user.scopes), " ".join(user.roles), user.tenant, moment(user.created_at))
            for user in users
        ],
    )


@command.command("remove")
@click.argument("name")
@file_option("basic")
@json_option
def remove(name: str, file: str | None) -> None:
    """Remove a user."""
    from mesh.gateway.edge.auth import passwords

    where = file_of("basic", file)
    passwords.remove(where.path, name)
    if wants_json():
        write_json({"name": name})
    else:
        click.echo(f"removed {name}")
        note("it takes effect here within a second; copy the file to every other host with gateways")


def _password() -> str:
    if sys.stdin.isatty():
        found: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        return found
    return sys.stdin.readline().rstrip("\r\n")

"""`mesh apikeys`. Owns: its options and output. Leaves to others: the keys (gateway.edge.auth.api_keys)."""

from __future__ import annotations

import time
from typing import Any

import click

from mesh.cli.credentials import advise, check_name, file_of, file_option, moment, rights_options
from mesh.cli.output import json_option, note, wants_json, write_json, write_table


@click.group("apikeys", context_settings={"help_option_names": ["-h", "--help"]})
@json_option
def command() -> None:
    """Make, list and revoke API keys of the gateways.

    Clients send a key as `Authorization: Bearer mk_…` or `X-API-Key: mk_…`. The file of [auth.apikeys] holds a hash of
    each key, not the key. Running gateways see a change within a second; copy the file to every host with gateways.

    \b
      mesh apikeys create billing --scopes orders:read --expires 90d
      mesh apikeys revoke billing
    """


@command.command("create")
@click.argument("name")
@rights_options
@click.option("--principal", default="", metavar="NAME", help="The principal of its requests, instead of NAME.")
@click.option("--expires", metavar="DURATION", help="The key is valid for this long, such as 90d.")
@file_option("apikeys")
@json_option
def create(
    name: str,
    scopes: list[str],
    roles: list[str],
    tenant: str,
    principal: str,
    expires: str | None,
    file: str | None,
) -> None:
    """Make a key and print it. It is shown this once: nothing stores it."""
    from mesh.config.values import read_duration
    from mesh.gateway.edge.auth import api_keys

    if not check_name(name).strip():
        raise click.UsageError("NAME: is empty")
    check_name(principal)
    try:
        valid_s = read_duration(expires) if expires is not None else None
    except ValueError as exc:
        raise click.UsageError(f'--expires: "{expires}" is not a duration like 90d or 12h: {exc}') from None
    if valid_s == 0:
        raise click.UsageError("--expires: must be longer than 0 s")
    where, now = file_of("apikeys", file), time.time()
    text, key = api_keys.create(
        where.path,
        name,
        principal=principal,
        scopes=scopes,
        roles=roles,
        tenant=tenant,
        now=now,
        expires_at=now + valid_s if valid_s else 0.0,
    )
    if wants_json():
        write_json({"key": text, **_shown(key)})
    else:
        click.echo(text)
        note(f"made {key.id} for {key.principal} in {where.path}; it is not shown again")
    advise(where)


@command.command("list")
@file_option("apikeys")
@json_option
def show(file: str | None) -> None:
    """Show every key: its id, what it is for, and what it may do."""
    from mesh.gateway.edge.auth import api_keys

    keys = api_keys.listed(file_of("apikeys", file).path)
    if wants_json():
        write_json([_shown(key) for key in keys])
        return
    now = time.time()
    write_table(
        ("id", "name", "principal", "scopes", "roles", "tenant", "made", "expires"),
        [
            (
                key.id,
                key.name,
                key.principal,
                " ".join(key.scopes),
                " ".join(key.roles),
                key.tenant,
                moment(key.created_at),
                "EXPIRED" if 0 < key.expires_at <= now else moment(key.expires_at),
            )
            for key in keys
        ],
    )


@command.command("revoke")
@click.argument("which", metavar="ID|NAME")
@file_option("apikeys")
@json_option
def revoke(which: str, file: str | None) -> None:
    """Revoke a key, named by its ID, or by its NAME when no other key has it."""
    from mesh.gateway.edge.auth import api_keys

    where = file_of("apikeys", file)
    key = api_keys.revoke(where.path, which)
    if wants_json():
        write_json(_shown(key))
    else:
        click.echo(f"revoked {key.id}  {key.name}")
        note("it takes effect here within a second; copy the file to every other host with gateways")


def _shown(key: Any) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "principal": key.principal,
        "scopes": key.scopes,
        "roles": key.roles,
        "tenant": key.tenant,
        "created_at": key.created_at,
        "expires_at": key.expires_at or None,
    }

"""`mesh config`. Owns: showing settings. Leaves to others: finding them (mesh.config)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mesh.cli.commands import completion
from mesh.cli.output import json_option, note, wants_json, write_json, write_table
from mesh.suggest import suggestion

if TYPE_CHECKING:
    from mesh.config.origins import Origin


@click.command("config")
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=completion.settings)
@click.option("--about", is_flag=True, help="Describe each key.")
@json_option
def command(keys: tuple[str, ...], about: bool) -> None:
    """Show each setting, its value, and the source of the value.

    A KEY is a dotted name, or the beginning of one: `gateway.port`, `calls`. `mesh config interceptors` also lists the
    interceptors of each service, the outermost first; for that, the services of mesh.toml are imported.
    """
    from mesh.config import find_file, origins

    rows = origins()
    rows += _chains(keys)
    if keys:
        known = {row.key for row in rows}
        for key in keys:
            if not any(name == key or name.startswith(key + ".") for name in known):
                raise click.UsageError(f"there is no key {key!r}{suggestion(key, known)}")
        rows = [row for row in rows if any(row.key == key or row.key.startswith(key + ".") for key in keys)]
    if wants_json():
        write_json([row._asdict() for row in rows])
        return
    columns = ("key", "value", "from", *(("what it is for",) if about else ()))
    write_table(
        columns,
        [(row.key, _shown(row.value), row.origin, *((row.about,) if about else ())) for row in rows],
    )
    if find_file() is None:
        note("there is no mesh.toml here or above; these are the defaults and the environment")


def _chains(keys: tuple[str, ...]) -> list[Origin]:
    """A row for each chain of interceptors, when they are asked for. The import of a service may take long or hang; all
    other keys are shown in any case."""
    if not any(key.partition(".")[0] == "interceptors" for key in keys):
        return []
    from mesh.cli import setting
    from mesh.cli.chains import chains
    from mesh.config.origins import Origin

    found, problems = chains(setting.usable().settings)
    for problem in problems:
        note(f"interceptors are not listed: {problem}")
    about = "interceptors, the outermost first"
    return [Origin(f"interceptors.{each.where}.{each.point}", each.names, "effective", about) for each in found]


def _shown(value: Any) -> str:
    import msgspec

    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()

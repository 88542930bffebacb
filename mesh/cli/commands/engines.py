"""`mesh engines`. Owns: its table. Leaves to others: finding engines and what they offer (mesh.engines.registry)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mesh.cli import exits, setting
from mesh.cli.output import json_option, note, wants_json, write_json, write_table

if TYPE_CHECKING:
    from mesh.config import Settings
    from mesh.engines.registry import Listed


@click.command("engines")
@json_option
def command() -> int:
    """Show the available engines, what each supports, and which of them serves what.

    Engines are built in, come from installed packages, or are the project's own; [engines] in mesh.toml chooses. The
    exit code is 1 when an engine that is chosen cannot be loaded.
    """
    from mesh.engines.registry import listed

    found = setting.usable()
    rows = [_row(each, found.settings) for each in listed(found.settings)]
    complaints = [line for line in found.complaints if _is_of_engines(line)]
    if wants_json():
        write_json(rows)
    else:
        write_table(
            ("engine", "offers", "together", "serves", "from", "about"),
            [
                (
                    row["name"],
                    " ".join(row["offers"]) or "cannot be loaded",
                    " ".join(row["together"]) or "·",
                    " ".join(row["serves"]) or "·",
                    row["from"],
                    row["about"] or "·",
                )
                for row in rows
            ],
        )
        for row in rows:
            if row["error"]:
                note(row["error"])
    for line in complaints:
        note(line)
    return exits.FAILED if complaints else exits.OK


def _is_of_engines(complaint: str) -> bool:
    """Whether an error of the settings is one of [engines]: it names a key, or a variable."""
    place, _, rest = complaint.partition(": ")
    return rest.startswith("engines.") or place.startswith("MESH_ENGINES_")


def _row(each: Listed, settings: Settings) -> dict[str, Any]:
    from mesh.engines.capabilities import CAPABILITIES, KEYS, REQUIRED

    spec = each.spec
    offered = spec.capabilities if spec is not None else ()
    together = spec.together if spec is not None else ()
    names = {each.name, spec.name} if spec is not None else {each.name}
    return {
        "name": each.name,
        "offers": [capability for capability in CAPABILITIES if capability in offered],
        "together": [capability for capability in CAPABILITIES if capability in together],
        # A default that lacks a capability does not serve it.
        "serves": [key for key in KEYS if getattr(settings.engines, key) in names and REQUIRED[key] in offered],
        "settings": f"engines.{spec.name}" if spec is not None and spec.settings is not None else "",
        "from": each.source.shown,
        "reference": each.source.reference,
        "about": spec.about if spec is not None else "",
        "error": each.error,
    }

"""The services that a worker waits for before it is ready: those that its classes name in `needs` and that do not run.

Owns: finding them. A waiting worker is not in the registry, so its classes are imported (`mesh run --check`).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Collection
from typing import Final

import msgspec

from mesh.config import Settings

IMPORT_S: Final = 10.0


async def lacking(settings: Settings, name: str, there: Collection[str]) -> list[str]:
    """The services that [services.NAME] needs and that are not in `there`; empty when they cannot be determined."""
    service = settings.services.get(name)
    if service is None or not service.classes:
        return []
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "mesh.cli.main", "run", "--check", "--json", "--as", name, *service.classes],
            cwd=settings.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=IMPORT_S,
            check=True,
        )
        found = msgspec.json.decode(done.stdout.splitlines()[-1])["services"]
        own = {each["name"] for each in found}
        needed = dict.fromkeys(need for each in found for need in each["needs"])
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError, LookupError, TypeError):
        return []
    return [need for need in needed if need not in own and need not in there]


async def explained(settings: Settings, missing: Collection[str], there: Collection[str]) -> list[str]:
    """The missing services, as `mesh up` lists them, each with the services that it waits for."""
    found = []
    for each in missing:
        name = each.split(" ")[0].partition(":")[0]
        lacks = await lacking(settings, name, there) if "not yet in the registry" in each else []
        more = f": it waits for {', '.join(lacks)}, which it needs and which is not running)"
        found.append(f"{each.removesuffix(')')}{more}" if lacks else each)
    return found

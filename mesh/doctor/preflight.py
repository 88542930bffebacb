"""Checks that each service's workers can start, before a roll replaces any process.

Owns: when to check, and the error. Leaves to others: the check itself (doctor_services: `mesh run --check`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from mesh.config import Settings, Usable, usable
from mesh.config.settings import cores
from mesh.doctor.finding import Finding
from mesh.doctor.services import try_service
from mesh.errors import SetupError


class PreflightFailed(SetupError):
    """The workers of a service could not start; nothing was changed. `details` hold the services."""

    code = "preflight_failed"


async def preflight(settings: Settings, env: Mapping[str, str], names: Collection[str] = ()) -> int:
    """Import each service's classes with the current code and settings, as its workers would; returns how many.

    Args:
        env: the environment that workers inherit.
        names: only these services; all of them when it is empty.

    Raises:
        PreflightFailed: some could not start; each is named, with the reason.
    """
    found = usable(settings.file)
    wanted = [
        name
        for name, each in found.settings.services.items()
        if each.runs and each.replicas and (name in names or not names)
    ]
    room = asyncio.Semaphore(cores())

    async def one(name: str) -> list[Finding]:
        async with room:
            return await _try(found, name, env)

    findings = dict(zip(wanted, await asyncio.gather(*map(one, wanted)), strict=True))
    bad = {name: told for name, told in findings.items() if told}
    if bad:
        lines = [f"{each.about}: {each.told}" for told in bad.values() for each in told]
        raise PreflightFailed("\n".join([*lines, "nothing was changed"]), details={"services": sorted(bad)})
    return len(wanted)


async def _try(found: Usable, name: str, env: Mapping[str, str]) -> list[Finding]:
    return [each async for each in try_service(found, name, found.settings.services[name], env)]

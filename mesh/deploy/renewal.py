"""Restarts processes that run with an earlier mesh.toml and therefore cannot be found with the current one.

After a release with other hubs, `mesh up` would otherwise wait in vain: running processes are not changed, and they
register at hubs that the current settings do not name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mesh.config import Settings
from mesh.deploy.processes import Crew
from mesh.deploy.provenance import stale
from mesh.supervisord.control import Process
from mesh.supervisord.layout import Layout


def stale_among(
    layout: Layout, settings: Settings, processes: Sequence[Process], missing: Collection[str], *, hub: bool
) -> list[Process]:
    """The missing processes that run with another mesh.toml.

    Args:
        missing: names of processes that are not in the registry, or do not answer.
        hub: no hub answers, so this host's hubs are missing as well.
    """
    verbs = {program.group: program.verb for program in layout.programs}
    wanted = (each for each in processes if each.name in missing or (hub and verbs.get(each.program) == "hub"))
    return [each for each in wanted if stale(layout, settings, each)]


async def renew(crew: Crew, layout: Layout, processes: Sequence[Process]) -> None:
    """Stop these processes, and start them with the project's current settings.

    Raises:
        Unavailable: a process does not stop.
    """
    stops = {program.group: program.stop_s for program in layout.programs}
    for process in processes:
        role = crew.roster.roles.get(process.program)
        await crew.end([process.name], stops.get(process.program, 10.0))
        number = role.number(process.name) if role is not None else None
        if role is not None and number is not None:
            # Gateways have one file for all copies.
            present = crew.roster.present(role.name)
            own = {one: role.text(one) for one in present if role.socket or one == number}
            crew.keep(role, {**present, **own})
        else:
            crew.roster.unpin(process.program)
            crew.control.sync(process.program)
        crew.begin([process.name])

"""Releases a service by traffic share: canaries get a growing share of its calls, as long as they are no worse.

Owns: the two commands: rolling, with going back in every case but success, and aborting.
Leaves to others: the steps (canary_steps), the verdict (policy.canary), the share in the registry (worker.canary).

Canaries are additional copies of the service, started from the current directory with `mesh run --canary`. Their
number grows with the share, so that each gets about as many calls as a regular copy. The last step is an ordinary roll
of the regular copies, while the canaries answer the calls; then the canaries leave.

No state needs this command to end: when it is killed, the share ends with its lease, and the idle canaries are removed
by the next `mesh roll` of the service, by `mesh roll --abort`, or by `mesh up`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mesh.config import Settings
from mesh.deploy.canary_plan import CanaryRejected, CanarySample, Plan, Promoted
from mesh.deploy.canary_state import StateFiles
from mesh.deploy.canary_steps import CanaryRoll, canaries, remove
from mesh.deploy.processes import LOOK_EVERY_S, Tell, at_work, now, stay
from mesh.deploy.roll import RollFailed, RollInterrupted
from mesh.deploy.scale import check_names
from mesh.errors import LockTaken, SetupError, Unavailable
from mesh.supervisord.layout import Layout
from mesh.supervisord.programs import Role
from mesh.supervisord.roster import Roster


async def roll_canary(
    layout: Layout,
    settings: Settings,
    name: str,
    plan: Plan,
    *,
    tell: Tell = lambda text: None,
    report: Callable[[CanarySample], None] = lambda sample: None,
) -> Promoted:
    """Roll one service by traffic share.

    Args:
        report: called with each sample.

    Raises:
        NoSuchRole: mesh.toml has no such service.
        CanaryRejected: the new release is worse, or it could not be shown that it is not; the old one runs.
        RollFailed: a process did not become ready; the old release runs.
        RollInterrupted: the task was cancelled, or `abort` was called; the old release runs.
        Unavailable, LockTaken: as `roll`.
    """
    async with at_work(layout, settings, tell) as crew:
        role = _role(crew.roster, name)
        await crew.need_hub()
        one = CanaryRoll(crew, role, plan, tell, report)
        try:
            return await one.run()
        except asyncio.CancelledError:
            stay()
            tell("interrupted; going back")
            raise RollInterrupted(f"interrupted; {await one.go_back(sound=True)}") from None
        except RollInterrupted as exc:
            raise RollInterrupted(f"{exc.message}; {await one.go_back(sound=True)}") from None
        except CanaryRejected as exc:
            raise CanaryRejected(f"{exc.message}\n{await one.go_back()}", details=exc.details) from exc
        except (SetupError, Unavailable) as exc:
            raise RollFailed(
                f"{exc.message}\nthe canary roll was aborted; {await one.go_back()}",
                details={**exc.details, "undone": one.undone},
            ) from exc
        finally:
            one.files.clear()


async def abort(layout: Layout, settings: Settings, name: str, *, wait_s: float = 120.0) -> int:
    """End the canaries of a service: those of a running command, or those that a killed one has left behind.

    Returns:
        How many canaries ended.

    Raises:
        NoSuchRole: mesh.toml has no such service.
        LockTaken: another command is changing the processes, or the roll did not end within `wait_s`.
        Unavailable: no supervisord runs.
    """
    until = now() + wait_s
    ended = 0
    roster = Roster(layout, settings)
    role = _role(roster, name)
    files = StateFiles(roster)
    while True:
        try:
            async with at_work(layout, settings) as crew:
                left = canaries(crew.roster, role)
                await remove(crew, role, left)
                files.clear()
                return ended + len(left)
        except LockTaken:
            state = files.read()
            if state is None or state.service != name or now() >= until:
                raise
            ended = max(ended, len(canaries(roster, role)))
            files.ask_to_abort()
        await asyncio.sleep(LOOK_EVERY_S * 4)


def _role(roster: Roster, name: str) -> Role:
    check_names(roster, [name])
    role = roster.roles[name]
    if role.socket or role.single:
        raise SetupError(f"{name} is no service: only services are released by traffic share; use `mesh roll {name}`")
    return role

"""The steps of one canary roll: start canaries, raise their share, compare, promote, or go back.

Owns: the order of the steps, renewing the share, and going back.
Leaves to others: the verdict (policy.canary), the calls of both releases (canary_sampling), each step on processes
(processes), replacing the regular copies in the end (replicas).
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final

from mesh.deploy.canary_plan import CanaryRejected, CanarySample, Plan, Promoted, capped, copies, near
from mesh.deploy.canary_sampling import Period, Sampling
from mesh.deploy.canary_state import CanaryState, StateFiles
from mesh.deploy.error_gate import ErrorGate
from mesh.deploy.halt import Halt
from mesh.deploy.processes import Crew, Tell, now
from mesh.deploy.replicas import Copies
from mesh.deploy.roll import RollInterrupted
from mesh.discovery.share import share_of
from mesh.errors import MeshError, SetupError, Unavailable
from mesh.policy.canary import Found, Judge, Verdict
from mesh.supervisord.programs import Role
from mesh.supervisord.roster import Roster
from mesh.telemetry.metrics import BOUNDS

#: The lease of a share. Longer than a controller on a loaded machine pauses, short enough for users.
LEASE_S: Final = 10.0
RENEW_EVERY_S: Final = 2.0
#: A canary that has not reported its counters for so long is taken for hung.
SILENT_S: Final = 8.0
#: How long the old release is observed before the canaries get their first call.
BEFORE_S: Final = 1.0
ANSWER_S: Final = 2.0
#: How often the processes, and the request to abort, are looked at between two samples.
ABORT_EVERY_S: Final = 0.25


class CanaryRoll:
    """One canary roll of one service.

    Attributes:
        files: show it to other commands.
        undone: whether everything went back to its earlier state.
    """

    def __init__(self, crew: Crew, role: Role, plan: Plan, tell: Tell, report: Callable[[CanarySample], None]) -> None:
        self.files = StateFiles(crew.roster)
        self.undone = True
        self._crew = crew
        self._role = role
        self._plan = plan
        self._tell = tell
        self._report = report
        self._id = secrets.token_hex(4)
        self._share = self._mirror = 0.0
        #: The running canaries: process -> pid.
        self._pids: dict[str, int] = {}
        self._promotion: Copies | None = None
        self._judge = Judge(plan.rules, BOUNDS)
        self._gate = ErrorGate(crew, plan.gate)
        self._mirrored: dict[str, int] = {}
        self._silent_since: dict[str, float] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._began_at = now()
        self._sampling: Sampling | None = None

    async def run(self) -> Promoted:
        """Take all steps.

        Raises:
            MeshError: it did not succeed, or was aborted; call `go_back`.
        """
        crew, role, plan = self._crew, self._role, self._plan
        self.files.clear()
        if left := canaries(crew.roster, role):
            self._tell("removing the canaries of an earlier roll")
            await remove(crew, role, left)
        regular = [process for process in crew.processes(role).values() if process.pid]
        if not regular:
            raise SetupError(f"{role.name}: no process runs, so there is nothing to compare with; `mesh up` starts it")
        services = self._services({process.pid for process in regular})
        if not services:
            raise SetupError(f"{role.name}: its processes are not in the registry; `mesh ps` shows why")
        sampling = self._sampling = Sampling(
            crew.node, services, plan.faults, mirrored=plan.mirror > 0, copies_only=not plan.shares
        )
        await self._gate.begin()
        await sampling.look()
        self._write()
        everywhere = len([each for each in sampling.instances() if share_of(each.meta) is None])
        # The canaries of this host answer at most what its regular copies answer now.
        here = len(regular)
        most = here / max(everywhere, here)
        shares = capped(plan.shares, most)
        await self._scale(copies((shares or (0.0,))[0] + plan.mirror, everywhere, here))
        await asyncio.sleep(BEFORE_S)
        before = await sampling.look(self._ids())
        self._judge.expect(before.old, {name: old for name, (old, _) in before.methods.items()})
        self._renewing = asyncio.create_task(self._renew(), name="mesh.canary")
        self._began_at = now()
        if not plan.shares:
            await self._observe(0.0)
            return await self._over(0)
        for share in shares:
            await self._scale(copies(share + plan.mirror, everywhere, here))
            await self._observe(share)
        return await self._over(await self._promote(most, here))

    async def go_back(self, *, sound: bool = False) -> str:
        """End the canaries, and undo the roll of the regular copies; returns a description of what runs then.

        Args:
            sound: the roll was only interrupted; the new release has not failed.
        """
        await self._stop_renewing()
        told = f"{self._role.name} runs as before"
        try:
            await self._announce(0.0, 0.0)
            if self._promotion is not None:
                told = await self._promotion.back(sound=sound)
            await remove(self._crew, self._role, canaries(self._crew.roster, self._role))
        except (SetupError, Unavailable) as exc:
            self.undone = False
            return f"{self._role.name} could not be rolled back: {exc.message}"
        return told

    # --- the steps ----------------------------------------------------------------------------------------

    async def _scale(self, count: int) -> None:
        """Start canaries until there are so many; each must become ready, and stay so."""
        crew, role = self._crew, self._role
        missing = count - len(self._pids)
        if missing <= 0:
            return
        present = crew.roster.present(role.name)
        first = max([*crew.processes(role), *present, crew.roster.count(role.name) - 1], default=-1) + 1
        texts = {number: role.canary_text(number) for number in range(first, first + missing)}
        self._tell(f"starting {missing} canaries")
        crew.keep(role, present | texts)
        crew.start(role, texts)
        names = {role.process(number) for number in texts}
        started = await crew.answering(names, self._plan.patience_s, registered=True)
        await crew.running(started, self._plan.settle_s)
        self._pids |= started

    async def _observe(self, share: float) -> None:
        """Give the canaries a share, and compare both releases until there is a verdict.

        Raises:
            CanaryRejected: the new release is worse, or undecided.
            StartFailed: a canary has ended.
            RollInterrupted: another command asked to abort.
        """
        assert self._sampling is not None
        await self._announce(share, self._plan.mirror)
        self._judge.raise_share()
        began = now()
        while True:
            await self._pause(began)
            period = await self._sampling.look(self._ids())
            self._judge.observe(period.old, period.new, period.methods)
            for result, count in period.mirrored.items():
                self._mirrored[result] = self._mirrored.get(result, 0) + count
            found = self._verdict(now() - began)
            self._report(self._sample(period, found))
            self._check_silent(period.silent)
            if found.verdict is Verdict.PROMOTE:
                return
            if found.verdict is not Verdict.HOLD:
                raise CanaryRejected(
                    f"{self._role.name}: the new release was rolled back at {share * 100:.4g} % of the calls, after "
                    f"{now() - self._began_at:.0f} s. {found.why[:1].upper()}{found.why[1:]}",
                    details={
                        "service": self._role.name,
                        "why": found.why,
                        "share": share,
                        "seconds": round(now() - self._began_at, 1),
                        "new": {"calls": self._judge.new.calls, "failed": self._judge.new.failed},
                        "old": {"calls": self._judge.old.calls, "failed": self._judge.old.failed},
                    },
                )

    async def _promote(self, share: float, count: int) -> int:
        """Replace the regular copies while the canaries answer the calls; returns how many were replaced."""
        self._tell("promoting the new release")
        await self._scale(count)
        await self._announce(share, 0.0)
        promotion = self._promotion = Copies(
            self._crew, self._role, self._plan.patience_s, self._plan.settle_s, Halt(), self._gate.check
        )
        # The canaries are surplus copies to it: they leave at its end, when all regular copies run the new release.
        forward = asyncio.create_task(promotion.forward(), name="mesh.promotion")
        try:
            while not forward.done():
                self._check_abort()
                await asyncio.wait({forward}, timeout=ABORT_EVERY_S)
            forward.result()
        finally:
            forward.cancel()
            await asyncio.gather(forward, return_exceptions=True)
        await self._stop_renewing()
        await self._gate.stay()
        return count

    async def _over(self, replaced: int) -> Promoted:
        await self._stop_renewing()
        await remove(self._crew, self._role, canaries(self._crew.roster, self._role))
        return Promoted(
            self._role.name, replaced, now() - self._began_at, self._judge.old, self._judge.new, self._mirrored
        )

    # --- inside -------------------------------------------------------------------------------------------

    def _verdict(self, passed_s: float) -> Found:
        found = self._judge.verdict(passed_s)
        if self._plan.shares or found.verdict is Verdict.ROLL_BACK:
            return found
        # Calls are only mirrored: there is no next step, so the time alone ends it.
        return Found(Verdict.PROMOTE if passed_s >= self._plan.rules.step_s else Verdict.HOLD)

    def _sample(self, period: Period, found: Found) -> CanarySample:
        judge = self._judge
        sure = 1 / (1 - self._plan.rules.confidence)
        return CanarySample(
            now() - self._began_at,
            self._share,
            len(self._pids),
            period.old,
            period.new,
            near(judge.errors, 2 * sure),
            near(judge.latency, 2 * sure),
            near(judge.harmless, sure),
            dict(self._mirrored),
            found.verdict.value,
        )

    async def _pause(self, began: float) -> None:
        """Wait for the next sample, and notice in the meantime when a canary ends or another command asks to abort."""
        every_s = self._plan.every_s
        at = began + every_s * (math.floor((now() - began) / every_s) + 1)
        while (left := at - now()) > 0:
            self._check_abort()
            await self._crew.running(self._pids)
            await asyncio.sleep(min(left, ABORT_EVERY_S))

    def _check_abort(self) -> None:
        if self.files.abort_asked:
            raise RollInterrupted("aborted by another command")

    def _check_silent(self, silent: Collection[str]) -> None:
        at = now()
        self._silent_since = {each: self._silent_since.get(each, at) for each in silent}
        for each, since in self._silent_since.items():
            if at - since >= SILENT_S:
                process = next((name for name, pid in self._pids.items() if each in self._ids({pid})), each)
                raise self._crew.failed(process, f"it has not answered for {at - since:.0f} s")

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            await self._tell_share(self._share, self._mirror)

    async def _stop_renewing(self) -> None:
        task, self._renewing = self._renewing, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _announce(self, share: float, mirror: float) -> None:
        self._share, self._mirror = share, mirror
        self._write()
        await self._tell_share(share, mirror)

    async def _tell_share(self, share: float, mirror: float) -> None:
        async def one(instance: str) -> None:
            # A canary that does not answer keeps its lease at most; whether it is hung is decided by its counters.
            with suppress(MeshError):
                await self._crew.node.call(
                    "$worker.share",
                    share,
                    self._id,
                    LEASE_S,
                    mirror,
                    list(self._plan.methods),
                    instance=instance,
                    timeout=ANSWER_S,
                )

        await asyncio.gather(*(one(instance) for instance in self._asked()))

    def _asked(self) -> list[str]:
        """One instance of each canary."""
        known = self._crew.instances()
        return [known[pid][0].id for pid in self._pids.values() if known.get(pid)]

    def _ids(self, pids: Collection[int] | None = None) -> set[str]:
        known = self._crew.instances()
        return {each.id for pid in pids or self._pids.values() for each in known.get(pid, ())}

    def _services(self, pids: Collection[int]) -> set[str]:
        known = self._crew.instances()
        return {each.service for pid in pids for each in known.get(pid, ())}

    def _write(self) -> None:
        self.files.write(
            CanaryState(self._role.name, os.getpid(), self._share, self._mirror, time.time() - (now() - self._began_at))
        )


def canaries(roster: Roster, role: Role) -> list[int]:
    """The numbers of the copies that are canaries."""
    return [number for number, text in roster.present(role.name).items() if role.is_canary(text)]


async def remove(crew: Crew, role: Role, numbers: Sequence[int]) -> None:
    """End canaries; each finishes its work."""
    if numbers:
        await crew.drain(role, numbers)
        present = crew.roster.present(role.name)
        crew.keep(role, {number: text for number, text in present.items() if number not in numbers})

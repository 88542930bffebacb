"""Releases a service by traffic share: canaries get a growing share of its calls, as long as they are no worse.

Owns: the order of the steps, renewing the share, and going back in every case but success.
Leaves to others: the verdict (policy.canary), the calls of both releases (canary_sampling), the share in the registry
(worker.canary), each step on processes (processes), replacing the regular copies in the end (replicas).

Canaries are additional copies of the service, started from the current directory with `mesh run --canary`. Their
number grows with the share, so that each gets about as many calls as a regular copy. The last step is an ordinary roll
of the regular copies, while the canaries answer the calls; then the canaries leave.

Every state is left by itself when this command is killed: the share ends with its lease, and the idle canaries are
removed by the next `mesh roll` or `mesh up` of the project.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from mesh.config import Settings
from mesh.deploy.canary_sampling import Period, Sampling
from mesh.deploy.canary_state import CanaryState, StateFiles
from mesh.deploy.error_gate import ErrorGate, Limits
from mesh.deploy.halt import Halt
from mesh.deploy.processes import LOOK_EVERY_S, Crew, Tell, at_work, now, stay
from mesh.deploy.replicas import Copies
from mesh.deploy.roll import RollFailed, RollInterrupted
from mesh.deploy.scale import check_names
from mesh.discovery.share import share_of
from mesh.errors import LockTaken, MeshError, SetupError, Unavailable
from mesh.policy.canary import Calls, Found, Judge, Rules, Verdict
from mesh.supervisord.layout import Layout
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


class CanaryRejected(RollFailed):
    """The new release is worse than the old one, or too few calls showed that it is not; it was rolled back.

    `details` hold the reason, the share at that moment, and the calls of both releases.
    """

    code = "canary_rejected"


class Plan(NamedTuple):
    """How a canary roll proceeds.

    Attributes:
        shares: the shares of calls, as fractions in rising order; after the last one, all calls follow. Empty when
            calls are only mirrored.
        rules: of the verdict.
        mirror: the part of the calls that is copied to the canaries.
        methods: methods that may be copied although they change something.
        faults: codes of declared errors that count as failures.
        every_s: the period of the samples.
        patience_s: how long one process may take to become ready.
        settle_s: how long it must then stay up.
        gate: of the roll of the regular copies.
    """

    shares: tuple[float, ...]
    rules: Rules = Rules()
    mirror: float = 0.0
    methods: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    every_s: float = 2.0
    patience_s: float = 30.0
    settle_s: float = 1.0
    gate: Limits = Limits()


class Line(NamedTuple):
    """One sample of a canary roll.

    Attributes:
        at_s: seconds since the first share.
        share: the share of calls of the canaries, 0.0 to 1.0.
        old, new: calls that ended since the last sample.
        worse, slower, harmless: how near each finding is: 0.0 for no evidence, 1.0 for found.
        mirrored: compared copies so far, by result.
        verdict: "hold", "promote", "roll_back" or "undecided".
    """

    at_s: float
    share: float
    canaries: int
    old: Calls
    new: Calls
    worse: float
    slower: float
    harmless: float
    mirrored: dict[str, int]
    verdict: str


class Promoted(NamedTuple):
    """The result of a canary roll.

    Attributes:
        replaced: how many regular copies run the new release now; 0 when calls were only mirrored.
        old, new: the calls of both releases during the comparison.
        mirrored: compared copies, by result.
    """

    name: str
    replaced: int
    seconds: float
    old: Calls
    new: Calls
    mirrored: dict[str, int]


async def roll_canary(
    layout: Layout,
    settings: Settings,
    name: str,
    plan: Plan,
    *,
    tell: Tell = lambda text: None,
    report: Callable[[Line], None] = lambda line: None,
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
        one = _CanaryRoll(crew, role, plan, tell, report)
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
                left = _canaries(crew, role)
                await _remove(crew, role, left)
                files.clear()
                return ended + len(left)
        except LockTaken:
            state = files.read()
            if state is None or state.service != name or now() >= until:
                raise
            ended = max(ended, len(_present(roster, role)))
            files.ask_to_abort()
        await asyncio.sleep(LOOK_EVERY_S * 4)


class _CanaryRoll:
    def __init__(self, crew: Crew, role: Role, plan: Plan, tell: Tell, report: Callable[[Line], None]) -> None:
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
        crew, role, plan = self._crew, self._role, self._plan
        self.files.clear()
        if left := _canaries(crew, role):
            self._tell("removing the canaries of an earlier roll")
            await _remove(crew, role, left)
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
        shares = _capped(plan.shares, most)
        await self._scale(_copies((shares or (0.0,))[0] + plan.mirror, everywhere, here))
        await asyncio.sleep(BEFORE_S)
        before = await sampling.look(self._ids())
        self._judge.expect(before.old, {name: old for name, (old, _) in before.methods.items()})
        self._renewing = asyncio.create_task(self._renew(), name="mesh.canary")
        self._began_at = now()
        if not plan.shares:
            await self._observe(0.0)
            return await self._over(0)
        for share in shares:
            await self._scale(_copies(share + plan.mirror, everywhere, here))
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
            await _remove(self._crew, self._role, _canaries(self._crew, self._role))
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
            self._report(self._line(period, found))
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
        await _remove(self._crew, self._role, _canaries(self._crew, self._role))
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

    def _line(self, period: Period, found: Found) -> Line:
        judge = self._judge
        sure = 1 / (1 - self._plan.rules.confidence)
        return Line(
            now() - self._began_at,
            self._share,
            len(self._pids),
            period.old,
            period.new,
            _near(judge.errors, 2 * sure),
            _near(judge.latency, 2 * sure),
            _near(judge.harmless, sure),
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


def _capped(shares: Sequence[float], most: float) -> tuple[float, ...]:
    """The shares up to that of this host's copies. When there are other hosts, the last one is observed as well."""
    below = tuple(each for each in shares if each < most)
    return below + ((most,) if shares and most < 1.0 else ())


def _copies(share: float, everywhere: int, here: int) -> int:
    """How many canaries a share needs, so that each answers about as many calls as a regular copy.

    Args:
        everywhere, here: regular copies, on all hosts and on this one.
    """
    return min(here, max(1, math.ceil(share * max(everywhere, here) - 1e-9)))


def _near(evidence: float, enough: float) -> float:
    """The evidence on a logarithmic scale from 0 (none) to 1 (enough)."""
    return min(1.0, max(0.0, math.log(max(evidence, 1e-9)) / math.log(enough)))


def _role(roster: Roster, name: str) -> Role:
    check_names(roster, [name])
    role = roster.roles[name]
    if role.socket or role.single:
        raise SetupError(f"{name} is no service: only services are released by traffic share; use `mesh roll {name}`")
    return role


def _present(roster: Roster, role: Role) -> list[int]:
    return [number for number, text in roster.present(role.name).items() if role.is_canary(text)]


def _canaries(crew: Crew, role: Role) -> list[int]:
    return _present(crew.roster, role)


async def _remove(crew: Crew, role: Role, numbers: Sequence[int]) -> None:
    """End canaries; each finishes its work."""
    if numbers:
        await crew.drain(role, numbers)
        crew.keep(
            role, {number: text for number, text in crew.roster.present(role.name).items() if number not in numbers}
        )

"""Whether this gateway lives, and whether it should be given requests.

Owns: the checks, their lines, and what readiness means: it has heard from a hub once, and it is not leaving. A hub
that dies later changes nothing: every call goes on. A worker in a crash loop is told of, and changes nothing either:
to take every gateway out of its balancer for one broken service would break all the others.
Leaves to others: hearing from hubs (discovery.agent), draining (app), seeing crashes (telemetry.crashes).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from mesh.gateway.ports import Agent
from mesh.gateway.reply import Reply
from mesh.telemetry import crashes, heartbeats

_TEXT: Final = "text/plain; charset=utf-8"


class Check(NamedTuple):
    """One thing that must be so."""

    name: str
    passed: bool
    told: str


class Health:
    """The state behind /livez and /readyz.

    Args:
        run_dir: where supervisor's watch tells of crashes; None does not look.
    """

    def __init__(self, agent: Agent, run_dir: Path | None = None) -> None:
        self._agent = agent
        self._run_dir = run_dir
        self._heard = False
        #: Set once, when the gateway begins to leave.
        self.draining = False

    @property
    def heard(self) -> bool:
        """Some hub has told all it knows, now or earlier."""
        self._heard = self._heard or self._agent.synced
        return self._heard

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.heard and not self.draining

    def checks(self) -> list[Check]:
        """Every check, in the order in which they are shown."""
        if not self.heard:
            hub = Check("hub", False, "no hub has told yet who runs; is one up? (mesh ps)")
        elif self._agent.hearing:
            hub = Check("hub", True, "synced")
        else:
            hub = Check("hub", True, "none answers now; going on with what was told")
        return [
            Check("http", True, "answering"),
            hub,
            Check("drain", not self.draining, "leaving" if self.draining else "not asked to leave"),
        ]

    def live_reply(self, *, verbose: bool = False) -> Reply:
        """/livez: this process answers, so it lives."""
        return Reply(b"[+] http: answering\nlive\n" if verbose else b"live\n", _TEXT)

    def ready_reply(self, *, verbose: bool = False, conflicts: Iterable[object] = ()) -> Reply:
        """/readyz: 200 or 503, with a line per check when asked for or when one fails, and one per crash loop.
        When asked for, workers that are blocked, stopped or short of memory are listed, too.

        Args:
            conflicts: of routes; they change nothing, and are listed when asked for.
        """
        checks = self.checks()
        ready = all(check.passed for check in checks)
        lines = [f"[{'+' if check.passed else '-'}] {check.name}: {check.told}" for check in checks]
        shown = lines if verbose or not ready else []
        looping = [each.told() for each in crashes.read(self._run_dir) if each.looping] if self._run_dir else []
        shown += [f"[!] supervisor: {told}" for told in looping]
        shown += [f"[!] route: {each}" for each in conflicts] if verbose else []
        if verbose and self._run_dir:
            beats = heartbeats.read(self._run_dir)
            shown += [f"[!] worker: {each.process}: {told}" for each in beats if (told := each.trouble())]
        text = "\n".join([*shown, "ready" if ready else "not ready"]) + "\n"
        extra = b"" if ready else b"Retry-After: 1\r\n"
        return Reply(text.encode(), _TEXT, 200 if ready else 503, extra)

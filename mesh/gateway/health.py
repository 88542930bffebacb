"""Liveness and readiness of one gateway.

Owns: the checks, their lines, and the definition of ready: the gateway has once received the registry from a hub, and
is not draining. A hub that dies later changes nothing: calls continue. A worker in a crash loop is reported, but does
not affect readiness: taking every gateway out of its balancer for one broken service would break all the others.
Leaves to others: their addresses (mounts.health), hubs (discovery.agent), draining (app), detecting crashes
(telemetry.crashes).
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
    """One condition of readiness."""

    name: str
    passed: bool
    told: str


class Health:
    """The state behind /livez and /readyz.

    Args:
        run_dir: where supervisor's watch writes crashes; None reads none.
    """

    def __init__(self, agent: Agent, run_dir: Path | None = None) -> None:
        self._agent = agent
        self._run_dir = run_dir
        self._heard = False
        #: Set once, when the gateway begins to drain.
        self.draining = False

    @property
    def heard(self) -> bool:
        """Whether the registry has been received from a hub, now or earlier."""
        self._heard = self._heard or self._agent.synced
        return self._heard

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.heard and not self.draining

    def checks(self) -> list[Check]:
        """Every check, in the order in which they are shown."""
        if not self.heard:
            hub = Check("hub", False, "no hub has reported the running services yet; check that one is up (mesh ps)")
        elif self._agent.hearing:
            hub = Check("hub", True, "synced")
        else:
            hub = Check("hub", True, "no hub answers; using the last known registry")
        return [
            Check("http", True, "answering"),
            hub,
            Check("drain", not self.draining, "draining" if self.draining else "not draining"),
        ]

    def live_reply(self, *, verbose: bool = False) -> Reply:
        """/livez: this process answers, so it is alive."""
        return Reply(b"[+] http: answering\nlive\n" if verbose else b"live\n", _TEXT)

    def ready_reply(self, *, verbose: bool = False, conflicts: Iterable[object] = ()) -> Reply:
        """/readyz: 200 or 503, with a line per check when `verbose` or when a check fails, and a line per crash loop.
        With `verbose`, workers that are blocked, stopped or short of memory are listed, too.

        Args:
            conflicts: conflicts of routes; they do not affect readiness, and are listed with `verbose`.
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

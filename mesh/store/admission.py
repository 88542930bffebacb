"""Who may defer what: [access], asked before a task is taken.

Owns: judging the tasks of a unit by who sent it, and what a denial leaves behind.
Leaves to others: the rules (policy.access), proving names (transport), calls (calls.door), doing units (turns).

Deferring a task is judged as calling it: a rule that lets "gateway" call orders.charge lets it defer orders.charge. The
store decides, because it is the last to know by its link who asks; the worker that runs the task sees only the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mesh.calls.context import CallContext
from mesh.engines.contract import Outcome, Unit
from mesh.errors import Forbidden
from mesh.policy.access import Access
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder

log = get_logger("mesh.store")

#: Pairs of caller and task that are remembered; past it, one that makes up names is looked up each time.
REMEMBERED: Final = 4096


class Admission:
    """The rules of one store."""

    def __init__(self, access: Access, recorder: Recorder, identity: str) -> None:
        """`identity`: of the store, in errors: its mesh.toml is the one that counts."""
        self._access = access
        self._recorder = recorder
        self._identity = identity
        # (caller, queue) → what its refusal says; None when it may.
        self._known: dict[tuple[str, str], dict[str, Any] | None] = {}

    def refusals(self, units: Sequence[Unit], call: CallContext | None) -> dict[int, Outcome]:
        """The units that this call may not ask for, by their place; nothing of them is to be done."""
        caller = name_of(call)
        refused: dict[int, Outcome] = {}
        for place, unit in enumerate(units):
            for task in unit.tasks:
                error = self._refusal(caller, task.queue)
                if error is not None:
                    refused[place] = Outcome(error=error)
                    break
        return refused

    def _refusal(self, caller: str, queue: str) -> dict[str, Any] | None:
        known = self._known
        pair = caller, queue
        try:
            error = known[pair]
        except KeyError:
            error = self._look(caller, queue)
            if len(known) < REMEMBERED:
                known[pair] = error
                if error is not None:
                    log.warning("defer forbidden", caller=caller, task=queue[:200])
        if error is not None:
            service = queue.rpartition(".")[0]
            self._recorder.counter(
                "tasks_forbidden",
                "Tasks that [access] did not let a caller defer.",
                caller=caller[:100],
                service=service[:100],
            ).add()
        return error

    def _look(self, caller: str, queue: str) -> dict[str, Any] | None:
        service, _, task = queue.rpartition(".")
        if self._access.allows(caller, service, task):
            return None
        return Forbidden(
            f"{caller[:100]!r} may not defer {queue[:200]}: no [[access.allow]] of {self._identity} allows it",
            details={"caller": caller[:100], "target": queue[:200]},
        ).to_wire()


def name_of(call: CallContext | None) -> str:
    """The name that rules know a caller by: as calls.door has it."""
    if call is None:
        return ""
    return call.user or call.caller.rpartition("-")[0] or call.caller

"""Authorizes callers against `[access]`, before a call is dispatched.

Owns: the name of a caller, one decision for each link and target, and the log line and metric of a denial.
Leaves to others: the rules themselves (policy.access), authentication (transport), refusing the call (server).
"""

from __future__ import annotations

from typing import Final

from mesh.calls.running import Conversation
from mesh.errors import Forbidden
from mesh.policy.access import Access, name_of, remedy
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder

log = get_logger("mesh.calls")

#: Decisions cached for each link. Beyond it (a caller that invents targets), each call is decided anew.
REMEMBERED: Final = 1024
#: Callers counted by name in the metric; all further callers are counted together as OTHERS.
COUNTED_CALLERS: Final = 100
OTHERS: Final = "(others)"


def caller_of(conversation: Conversation) -> str:
    """The caller's name in the rules."""
    return name_of(conversation.channel.user, conversation.callee.peer)


class CallAuthorization:
    """Authorization of the calls to one worker."""

    def __init__(self, access: Access, recorder: Recorder, identity: str) -> None:
        self._access = access
        self._recorder = recorder
        self._identity = identity
        self._callers: set[str] = set()
        #: The services that this worker runs.
        self.services: set[str] = set()

    def refusal(self, conversation: Conversation, target: str) -> Forbidden | None:
        """The error when this caller may not call that target; None when it may."""
        known = conversation.permits
        try:
            error = known[target]
        except KeyError:
            error = self._look(conversation, target)
            if len(known) < REMEMBERED:
                known[target] = error
        if error is not None:
            # Names that callers invent must not create an unbounded number of time series.
            service = target.rpartition(".")[0]
            caller = caller_of(conversation)[:100]
            if len(self._callers) < COUNTED_CALLERS:
                self._callers.add(caller)
            self._recorder.counter(
                "calls_forbidden",
                "Calls that [access] denied.",
                caller=caller if caller in self._callers else OTHERS,
                service=service if service in self.services else OTHERS,
            ).add()
        return error

    def _look(self, conversation: Conversation, target: str) -> Forbidden | None:
        caller = caller_of(conversation)
        service, _, method = target.rpartition(".")
        if self._access.allows(caller, service, method):
            return None
        rule = remedy(caller, service=service, methods=method)
        # Logged once for each link and target, as the decision is cached.
        log.warning("call.forbidden", caller=caller, target=target[:200], peer=conversation.callee.peer, rule=rule)
        return Forbidden(
            f"{caller[:100]!r} may not call {target[:200]}: no [[access.allow]] of {self._identity} allows it",
            details={"caller": caller[:100], "target": target[:200], "rule": rule},
        )

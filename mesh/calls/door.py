"""Who comes in: the callee's look at [access], before a call is anything else.

Owns: who a caller is, asking the rules once for each link and target, and what a denial leaves behind.
Leaves to others: the rules themselves (policy.access), proving names (transport), telling the caller (server).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mesh.errors import Forbidden
from mesh.policy.access import Access, remedy
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder

if TYPE_CHECKING:
    from mesh.calls.server import Conversation

log = get_logger("mesh.calls")

#: Targets that are remembered for each link; past it, a caller that makes up names is looked up each time.
REMEMBERED: Final = 1024
#: Callers that are counted by name; those that come later are counted together, as OTHERS.
COUNTED_CALLERS: Final = 100
OTHERS: Final = "(others)"


def caller_of(conversation: Conversation) -> str:
    """The name that rules know a caller by: that of the key which it proved to hold, or, where links have no keys, the
    role in the identity that it claims ("gateway" of "gateway-3f9ac2d1")."""
    identity = conversation.callee.peer
    return conversation.channel.user or identity.rpartition("-")[0] or identity


class Door:
    """Of one worker."""

    def __init__(self, access: Access, recorder: Recorder, identity: str) -> None:
        self._access = access
        self._recorder = recorder
        self._identity = identity
        self._callers: set[str] = set()
        #: Those that this worker runs.
        self.services: set[str] = set()

    def refusal(self, conversation: Conversation, target: str) -> Forbidden | None:
        """Why this caller may not call that target; None when it may."""
        known = conversation.permits
        try:
            error = known[target]
        except KeyError:
            error = self._look(conversation, target)
            if len(known) < REMEMBERED:
                known[target] = error
        if error is not None:
            # What callers make up must not become series without end.
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
        # Once for each link and target: it is remembered.
        log.warning("call forbidden", caller=caller, target=target[:200], peer=conversation.callee.peer, rule=rule)
        return Forbidden(
            f"{caller[:100]!r} may not call {target[:200]}: no [[access.allow]] of {self._identity} allows it",
            details={"caller": caller[:100], "target": target[:200], "rule": rule},
        )

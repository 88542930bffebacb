"""Authorizes callers, and the principals that they name, against `[access]`, before a call is dispatched.

Owns: the name of a caller, one decision for each link and target, one for each principal where rules depend on it, the
mark on principals that are not verified, and the log line and metric of a denial.
Leaves to others: the rules themselves (policy.access), authentication (transport), refusing the call (server).
"""

from __future__ import annotations

from typing import Any, Final

from mesh.calls.propagation import Values, asserted, unverified
from mesh.calls.running import Conversation
from mesh.config import AccessRule
from mesh.errors import Forbidden
from mesh.policy.access import Access, admits, name_of, remedy
from mesh.protocol.messages import CALL, OPEN
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder

log = get_logger("mesh.calls")

#: Decisions cached for each link. Beyond it (a caller that invents targets), each call is decided anew.
REMEMBERED: Final = 1024
#: Decisions about principals cached for the whole worker; when it is full, it is emptied.
REMEMBERED_PRINCIPALS: Final = 4096
#: Longer lists of roles are not kept in the cache, so that it stays below a few MB.
LONGEST_CACHED_ROLES: Final = 512
#: Callers counted by name in the metric; all further callers are counted together as OTHERS.
COUNTED_CALLERS: Final = 100
OTHERS: Final = "(others)"

#: The position of the metadata in a message.
_META: Final = {CALL: 7, OPEN: 8}

#: The rules that allow a caller a target for some principals; what `permits` holds for such a target.
Conditions = tuple[AccessRule, ...]


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
        self._principals: dict[tuple[str, str, str, str], Forbidden | None] = {}
        #: The services that this worker runs.
        self.services: set[str] = set()

    def refusal(self, conversation: Conversation, message: list[Any]) -> Forbidden | None:
        """The error when this caller may not make this call or open this stream; None when it may."""
        known = conversation.permits
        target: str = message[2]
        try:
            found = known[target]
        except KeyError:
            found = self._look(conversation, target)
            if len(known) < REMEMBERED:
                known[target] = found
        if found is None:
            return None
        error = found if isinstance(found, Forbidden) else self._look_at_principal(conversation, found, message)
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

    def verified(self, conversation: Conversation, carried: Values) -> Values:
        """The values as the handler gets them: with the mark UNVERIFIED when this caller may not assert principals."""
        return carried if self._asserts(conversation) else unverified(carried)

    def _asserts(self, conversation: Conversation) -> bool:
        if conversation.asserts is None:
            conversation.asserts = self._access.asserts(caller_of(conversation))
        return conversation.asserts

    def _look(self, conversation: Conversation, target: str) -> Forbidden | Conditions | None:
        caller = caller_of(conversation)
        service, _, method = target.rpartition(".")
        if self._access.allows(caller, service, method):
            return None
        if conditions := self._access.personal(caller, service, method):
            return conditions
        rule = remedy(caller, service=service, methods=method)
        # Logged once for each link and target, as the decision is cached.
        log.warning("call.forbidden", caller=caller, target=target[:200], peer=conversation.callee.peer, rule=rule)
        return Forbidden(
            f"{caller[:100]!r} may not call {target[:200]}: no [[access.allow]] of {self._identity} allows it",
            details={"caller": caller[:100], "target": target[:200], "rule": rule},
        )

    def _look_at_principal(
        self, conversation: Conversation, conditions: Conditions, message: list[Any]
    ) -> Forbidden | None:
        at = _META[message[0]]
        meta = message[at] if len(message) > at else None
        principal, roles = asserted(meta) if self._asserts(conversation) else ("", "")
        caller = caller_of(conversation)
        key = caller, message[2], principal, roles
        known = self._principals
        try:
            return known[key]
        except KeyError:
            pass
        error = None
        if not admits(conditions, principal, roles):
            error = self._denial(conversation, caller, message[2], principal, roles)
        if len(known) >= REMEMBERED_PRINCIPALS:
            known.clear()
        if len(roles) <= LONGEST_CACHED_ROLES:
            known[key] = error
        return error

    def _denial(self, conversation: Conversation, caller: str, target: str, principal: str, roles: str) -> Forbidden:
        service, _, method = target.rpartition(".")
        details = {"caller": caller[:100], "target": target[:200], "principal": principal}
        if principal:
            who = f"{caller[:100]!r} for the principal {principal!r}"
            rule = remedy(caller, principals=principal, service=service, methods=method)
        elif self._asserts(conversation):
            who = f"{caller[:100]!r} without a verified principal"
            rule = ""
        else:
            who = f"{caller[:100]!r}, which may not assert principals ([access] assert does not list it),"
            rule = ""
        # Logged once for each principal and target while the decision is cached. A user who is denied learns no rule.
        log.warning(
            "call.forbidden",
            caller=caller,
            principal=principal,
            roles=roles[:200],
            target=target[:200],
            peer=conversation.callee.peer,
            rule=rule,
        )
        return Forbidden(
            f"{who} may not call {target[:200]}: no [[access.allow]] of {self._identity} allows it", details=details
        )

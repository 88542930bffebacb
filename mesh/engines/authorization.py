"""Authorizes operations on durable data: the names that each operation touches, and the callers' rights by [access].

Owns: the table of the store's operations, the rights that they need, and the decision for each caller and name.
Leaves to others: the rules (policy.access), the principals of tasks and events (principals), identifying callers (by
their links), calling this (mesh.store, guarded).

Rights refer to names: of queues ("service.task" or "service.handler"), topics, namespaces, locks and schedules.
A process that may work for a service (`Access.may_work`) has these rights without a rule: to lease the tasks of its
queues and the deliveries of its durable handlers, to defer its tasks, to manage their jobs and dead letters, and to
fire its schedules. Subscribing its handlers to topics needs a rule. Operators may do everything.

A rule for principals or roles lets its callers defer the tasks, and publish the events, that name such a principal in
their metadata. It lets these callers look at all jobs of the queue, because requests about jobs name no principal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple

from mesh.config import AccessRule
from mesh.config.patterns import matches_any
from mesh.engines.contract import Unit
from mesh.engines.principals import Principals
from mesh.errors import Forbidden, SetupError
from mesh.events.containment import covers
from mesh.events.topics import BadTopic, Matcher
from mesh.policy.access import STORE, Access, remedy
from mesh.tasks.contract import Offer

#: defer: add tasks to a queue · look: find, await and cancel one job of a queue; implied by the rights to defer to it
#: and to work for it · work: lease, settle, list, requeue and drop the jobs of a queue, replay and delete a
#: subscription · publish: durable events of a topic · subscribe: to all topics of a pattern · read, write: a namespace
#: of state · lock · schedule · session: use a worker's session, or the watch of a process that waits for jobs ·
#: inspect: a rule names the store's method · operate: operators only.
Right = Literal[
    "defer",
    "look",
    "work",
    "publish",
    "subscribe",
    "read",
    "write",
    "lock",
    "schedule",
    "session",
    "inspect",
    "operate",
]


class Operation(NamedTuple):
    """One operation.

    Attributes:
        needs: (right, description of the names).
        filtered: the operation lists names: it shows those on which the caller has one of the rights, and never fails.
    """

    needs: tuple[tuple[Right, str], ...]
    filtered: bool = False


#: Method of the store → the rights that it needs. The store does not start if one is missing here (mesh.store.service).
OPERATIONS: Final[dict[str, Operation]] = {
    # One commit: each unit as a whole or not at all.
    "apply": Operation(
        (
            ("defer", "the queue of each task, those of chains and groups and of schedules too"),
            ("publish", "the topic of each event"),
            ("write", "the namespace of each write"),
            ("work", "the queue of each job that is settled"),
            ("schedule", "the name of each schedule that is advanced"),
        )
    ),
    # Workers.
    "work": Operation(
        (
            ("work", "each queue, each service that the worker answers for, and what its session holds"),
            ("subscribe", "all topics of each pattern of a queue"),
            ("session", "the session's name"),
        )
    ),
    "renew": Operation((("session", "the session"),)),
    "stop": Operation((("session", "the session"),)),
    "leave": Operation((("session", "the session"),)),
    # Jobs.
    "watch": Operation((("session", "the watch's name"),)),
    "follow": Operation((("session", "the watch's name"), ("look", "the queue of each job"))),
    "unfollow": Operation((("session", "the watch's name"),)),
    "find": Operation((("look", "the queue of the job"),)),
    "cancel": Operation((("look", "the queue of the job"),)),
    "queues": Operation((("look", "each queue"),), filtered=True),
    "jobs": Operation((("work", "the queue"),)),
    "requeue": Operation((("work", "the queue"),)),
    "drop": Operation((("work", "the queue"),)),
    # Events.
    "replay": Operation((("work", "the subscription's queue"),)),
    "abandon": Operation((("work", "the subscription's queue"),)),
    "read": Operation((("subscribe", "all topics of the pattern"),)),
    # A number, which says nothing about any topic.
    "last": Operation(()),
    # State.
    "get": Operation((("read", "the namespace"),)),
    "page": Operation((("read", "the namespace"),)),
    "namespaces": Operation((("read", "each namespace"), ("write", "each namespace")), filtered=True),
    # Schedules.
    "declare": Operation((("schedule", "each name"),)),
    "schedules": Operation((("schedule", "each name"),), filtered=True),
    # Locks.
    "acquire": Operation((("lock", "the name"),)),
    "renew_lock": Operation((("lock", "the name"),)),
    "release": Operation((("lock", "the name"),)),
    "locks": Operation((("lock", "each name"),), filtered=True),
    # The files.
    "backup": Operation((("operate", "the store"),)),
    "check": Operation((("operate", "the store"),)),
    "info": Operation((("inspect", "info"),)),
}

#: Cached pairs of caller and name for each right; further pairs (made-up names, say) are decided each time.
REMEMBERED: Final = 4096

#: Not cached.
_UNKNOWN: Final = object()

_DOES: Final[dict[Right, str]] = {
    "defer": "defer",
    "look": "look at jobs of",
    "work": "work for",
    "publish": "publish",
    "subscribe": "subscribe to",
    "read": "read state",
    "write": "write state",
    "lock": "take lock",
    "schedule": "fire schedule",
    "session": "use session",
    "inspect": f"call {STORE}",
    "operate": f"call {STORE}",
}


class Refusal(NamedTuple):
    """Why an operation is denied; `error()` makes a new Forbidden each time.

    Attributes:
        conditions: the rules that allow it for some principals.
        principal: the verified principal for which it was denied; "" for none.
    """

    message: str
    caller: str
    right: Right
    target: str
    conditions: tuple[AccessRule, ...] = ()
    principal: str = ""

    def error(self) -> Forbidden:
        details = {"caller": self.caller[:100], "right": self.right, "target": self.target[:200]}
        if self.principal:
            details["principal"] = self.principal
        return Forbidden(self.message, details=details)


class Authorization:
    """The decisions of one engine. Rules are compiled once for each caller, and decisions are cached."""

    def __init__(
        self,
        access: Access,
        identity: str,
        *,
        subscription: Callable[[str], bool],
        denied: Callable[[Refusal, bool], None],
    ) -> None:
        """Args:
        identity: names the engine in errors: the rules are those of its mesh.toml.
        subscription: whether a queue belongs to a durable handler: its jobs are made only from the event log.
        denied: called with each refusal, and whether it is a new one.

        Raises:
            SetupError: a rule has a malformed pattern of topics.
        """
        for rule in access.rules:
            try:
                Matcher((pattern, None) for pattern in (*rule.publish, *rule.subscribe))
            except BadTopic as exc:
                raise SetupError(f"{rule.place}: access.allow: events: {exc.message}") from exc
        self._access = access
        self._identity = identity
        self._subscription = subscription
        self._denied = denied
        # right → (caller, name) → the refusal; None when it is allowed.
        self._known: dict[Right, dict[tuple[str, str], Refusal | None]] = {right: {} for right in _DOES}
        self._principals = Principals(access, identity)
        self._publishing: dict[str, Matcher[None]] = {}

    # --- one name -----------------------------------------------------------------------------------------

    def refusal(self, caller: str, right: Right, name: str, meta: Mapping[str, str] | None = None) -> Refusal | None:
        """Why this caller does not have the right on the name; None when it has.

        Args:
            meta: the metadata of the task or event, which may name a principal.
        """
        if (right == "defer" or right == "look") and self._subscription(name):
            # The jobs there are events, and a deferred task would be treated as one.
            right = "work"
        known = self._known[right]
        pair = caller, name
        fresh = False
        try:
            found = known[pair]
        except KeyError:
            found = None if self._may(caller, right, name) else self._refusal(caller, right, name)
            fresh = len(known) < REMEMBERED
            if fresh:
                known[pair] = found
        if found is not None and found.conditions:
            message, principal, fresh = self._principals.decide(found, meta)
            found = found._replace(message=message, principal=principal) if message else None
        if found is not None:
            self._denied(found, fresh)
        return found

    def verified(self, caller: str, unit: Unit) -> Unit:
        """The unit to commit, in which principals are marked that the caller may not assert; see Principals."""
        return self._principals.verified(caller, unit)

    def check(self, caller: str, operation: str, *names: str) -> None:
        """Check an operation on names: it needs the last right of its table entry on each name.

        Raises:
            Forbidden: the caller does not have the right on one of them.
        """
        right = OPERATIONS[operation].needs[-1][0]
        for name in names:
            refusal = self.refusal(caller, right, name)
            if refusal is not None:
                raise refusal.error()

    def shown(self, caller: str, operation: str, name: str) -> bool:
        """Whether a listing may show this name."""
        return any(self._may(caller, right, name) for right, _ in OPERATIONS[operation].needs)

    # --- many at once -------------------------------------------------------------------------------------

    def unit(self, caller: str, unit: Unit, queue_of: Callable[[str], str]) -> Refusal | None:
        """Why this caller may not commit the unit; None when it may.

        Args:
            queue_of: the queue of a job, by its id; "" for an unknown job: the engine rejects its settlement.
        """
        refusal = self.refusal
        # Tasks and settlements come at tens of thousands per second: an allowed one costs one look-up.
        known = self._known["defer"]
        for task in unit.tasks:
            queue = task.queue
            if known.get((caller, queue), _UNKNOWN) is None and not self._subscription(queue):
                continue
            if found := refusal(caller, "defer", queue, task.meta):
                return found
        for event in unit.events:
            if found := refusal(caller, "publish", event.topic, event.meta):
                return found
        for write in unit.writes:
            if found := refusal(caller, "write", write.namespace):
                return found
        for advance in unit.advance:
            if found := refusal(caller, "schedule", advance.name):
                return found
        known = self._known["work"]
        for settlement in unit.settle:
            queue = queue_of(settlement.id)
            if not queue or known.get((caller, queue), _UNKNOWN) is None:
                continue
            if found := refusal(caller, "work", queue):
                return found
        return None

    def offer(self, caller: str, offer: Offer, holds: Iterable[str] = ()) -> Refusal | None:
        """Why this caller may not subscribe as this worker; None when it may.

        Args:
            holds: queues of the leases that its session has.
        """
        names = [*(f"{service}." for service in offer.services), *(queue.name for queue in offer.queues), *holds]
        for name in names:
            if found := self.refusal(caller, "work", name):
                return found
        for queue in offer.queues:
            for pattern in queue.patterns:
                if found := self.refusal(caller, "subscribe", pattern):
                    return found
        return None

    def stranger(self, caller: str, name: str) -> Forbidden:
        """The error for using a session or a watch that another caller owns."""
        refusal = Refusal(
            f"{caller[:100]!r} may not use {name[:200]!r}: it belongs to another caller", caller, "session", name
        )
        self._denied(refusal, False)
        return refusal.error()

    # --- deciding -----------------------------------------------------------------------------------------

    def _may(self, caller: str, right: Right, name: str) -> bool:
        access = self._access
        if access.is_operator(caller):
            return True
        rules = access.rules_of(caller)
        service, _, task = name.rpartition(".")
        if right == "work":
            return access.may_work(caller, service)
        if right == "defer" or right == "look":
            if self._subscription(name):
                return access.may_work(caller, service)
            return (
                access.may_work(caller, service)
                or access.names(caller, service, task)
                or any(matches_any(rule.tasks, name) for rule in rules)
                or (right == "look" and self._principals.may_look(caller, name))
            )
        if right == "publish":
            return self._may_publish(caller, name)
        if right == "subscribe":
            try:
                return covers([pattern for rule in rules for pattern in rule.subscribe], name)
            except BadTopic:
                return False
        if right == "schedule":
            return access.may_work(caller, service) or any(matches_any(rule.schedules, name) for rule in rules)
        if right == "read":
            return any(matches_any(rule.reads, name) for rule in rules)
        if right == "write":
            return any(matches_any(rule.writes, name) for rule in rules)
        if right == "lock":
            return any(matches_any(rule.locks, name) for rule in rules)
        if right == "inspect":
            return access.names(caller, STORE, name)
        return False

    def _may_publish(self, caller: str, topic: str) -> bool:
        matcher = self._publishing.get(caller)
        if matcher is None:
            if len(self._publishing) >= REMEMBERED:
                self._publishing.clear()
            rules = self._access.rules_of(caller)
            matcher = Matcher((pattern, None) for rule in rules for pattern in rule.publish)
            self._publishing[caller] = matcher
        return bool(matcher.match(topic))

    # --- saying no ----------------------------------------------------------------------------------------

    def _refusal(self, caller: str, right: Right, name: str) -> Refusal:
        who = repr(caller[:100])
        shown = name[:200]
        here = self._identity
        target = f"{_DOES[right]} {shown}"
        if right == "operate":
            target = f"{_DOES[right]}.{shown}"
            operators = ", ".join(self._access.operators) or "none"
            why = (
                f"only operators may ([access] operators of {here}: {operators}). Use the key or role of one "
                f"(`mesh keys make {self._access.operators[0] if self._access.operators else 'operator'}`), or add "
                f"{who} to [access] operators"
            )
        elif right == "work":
            service = name.rpartition(".")[0]
            target = f"{_DOES[right]} {service[:200]}" if name.endswith(".") else target
            why = (
                f"no [[access.serve]] of {here} allows it. A process with the key or role {service[:100]!r} may while "
                f"there are no such rules; to allow it, add {_serve_rule(caller, service)}"
            )
        else:
            target = f"{_DOES[right]}.{shown}" if right == "inspect" else target
            why = f"no [[access.allow]] of {here} allows it. To allow it, add {_rule(caller, right, shown)}"
        conditions = self._principals.conditions(caller, right, name)
        return Refusal(f"{who} may not {target}: {why}", caller, right, name, conditions)


def _rule(caller: str, right: Right, name: str) -> str:
    if right == "defer" or right == "look":
        return remedy(caller, tasks=name)
    if right in ("publish", "subscribe"):
        return remedy(caller, events={right: name})
    if right in ("read", "write"):
        return remedy(caller, state={right: name})
    if right == "inspect":
        return remedy(caller, service=STORE, methods=name)
    return remedy(caller, **{f"{right}s": name})


def _serve_rule(worker: str, service: str) -> str:
    return f'[[access.serve]] with worker = "{worker[:100]}", service = "{service[:100]}"'

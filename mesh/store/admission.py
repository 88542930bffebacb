"""Authorizes the store's callers: each operation is checked for the names that it touches before it starts.

Owns: identifying the caller of the running method, the owners of sessions and watches, and logging and counting
denials.
Leaves to others: the table of operations and the decision (engines.authorization), the rules (policy.access),
authentication (transport), the operations themselves (service).

The store decides, because it is the last process that identifies the caller by its link: the worker that runs a task
sees only the store. Later work of the store itself (the next task of a chain, a delivery, another attempt) was
authorized by the original request: each task of a chain by its queue, a subscription by its queue and its patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from mesh.calls.authorization import COUNTED_CALLERS, OTHERS
from mesh.calls.context import CallContext, current
from mesh.clock import Clock
from mesh.engines.authorization import OPERATIONS, Authorization, Refusal
from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite.core import Core
from mesh.errors import LeaseLost, SetupError
from mesh.policy.access import Access, name_of
from mesh.store.dispatch import Dispatch
from mesh.store.sessions import Sessions
from mesh.store.watches import Watch, Watches
from mesh.tasks.contract import Offer
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder

log = get_logger("mesh.store")

#: Owners of ended sessions are evicted when there are so many more owners than sessions.
SPARE_OWNERS: Final = 1024
#: An owner is kept for at least so long after it was recorded: its session may still be subscribing.
ATTACHING_S: Final = 60.0


class Admission:
    """The callers of one store."""

    def __init__(
        self,
        access: Access,
        recorder: Recorder,
        identity: str,
        *,
        core: Core,
        clock: Clock,
        dispatch: Dispatch,
        sessions: Sessions,
        watches: Watches,
    ) -> None:
        """`identity` names the store in errors: the rules are those of its mesh.toml.

        Raises:
            SetupError: a rule has a malformed pattern.
        """
        self._recorder = recorder
        self._core = core
        self._clock = clock
        self._dispatch = dispatch
        self._sessions = sessions
        self._watches = watches
        self._counted_callers: set[str] = set()
        self._counted_services: set[str] = set()
        # session → (the caller that owns it, when that was recorded).
        self._owners: dict[str, tuple[str, float]] = {}
        # Queues of durable handlers, by their latest declarations; needed for each task, so cached here.
        self._subscriptions = {
            name for name in core.names() if (said := core.declared(name)) is not None and said.patterns
        }
        self._authorization = Authorization(
            access, identity, subscription=self._subscriptions.__contains__, denied=self._denied
        )

    # --- names ----------------------------------------------------------------------------------------------------

    def check(self, operation: str, *names: str) -> None:
        """Raises:
        Forbidden: the caller is not authorized for one of these names.
        """
        self._authorization.check(caller_of(current()), operation, *names)

    def shown(self, operation: str) -> Callable[[str], bool]:
        """A predicate for the names that a listing may show to the caller."""
        caller = caller_of(current())
        return lambda name: self._authorization.shown(caller, operation, name)

    def refusals(self, units: list[Unit]) -> dict[int, Outcome]:
        """The outcomes of rejected units by their index: those for which the caller is not authorized. In the others,
        principals are marked that the caller may not assert."""
        caller = caller_of(current())
        refused: dict[int, Outcome] = {}
        unknown: list[str] = []

        def queue_of(id: str) -> str:
            queue = self._dispatch.queue_of(id) or self._core.queue_of(id)
            if not queue:
                unknown.append(id)
            return queue

        for place, unit in enumerate(units):
            found = self._authorization.unit(caller, unit, queue_of)
            if found is not None:
                refused[place] = Outcome(error=found.error().to_wire())
            elif unknown:
                # Rejected, because the job could become known and leased before the unit runs: a defer that is queued
                # before it makes the job.
                lost = f"job {unknown[0][:80]} is not known: it never existed, or its retention is over"
                refused[place] = Outcome(error=LeaseLost(lost, details={"job": unknown[0][:80]}).to_wire())
            else:
                units[place] = self._authorization.verified(caller, unit)
            unknown.clear()
        return refused

    # --- sessions -------------------------------------------------------------------------------------------------

    def attach(self, offer: Offer) -> None:
        """Authorize the caller to subscribe as this worker; it then owns the session.

        Raises:
            Forbidden: the caller may not subscribe, or another caller owns the session.
        """
        caller = caller_of(current())
        self._check_owner(caller, offer.session)
        found = self._authorization.offer(caller, offer)
        if found is not None:
            raise found.error()
        for queue in offer.queues:
            (self._subscriptions.add if queue.patterns else self._subscriptions.discard)(queue.name)
        self._note(offer.session, caller)

    def session(self, session: str) -> None:
        """Check that the caller owns this session.

        Raises:
            Forbidden: another caller owns it.
        """
        self._check_owner(caller_of(current()), session)

    def _check_owner(self, caller: str, session: str) -> None:
        owner = self._owners.get(session)
        if owner is not None and (session in self._sessions or self._clock.now() < owner[1] + ATTACHING_S):
            if owner[0] != caller:
                raise self._authorization.stranger(caller, session)
        elif session in self._sessions:
            # Since the store was restarted, only the session's leases are known: require the right to run their queues.
            queues = {self._dispatch.queue_of(id) for id, _ in self._dispatch.leases(session)}
            found = self._authorization.offer(caller, Offer(session, (), ()), queues)
            if found is not None:
                raise self._authorization.stranger(caller, session)
            self._note(session, caller)

    def _note(self, session: str, caller: str) -> None:
        now = self._clock.now()
        if len(self._owners) > len(self._sessions) + SPARE_OWNERS:
            self._owners = {
                name: owner
                for name, owner in self._owners.items()
                if name in self._sessions or now < owner[1] + ATTACHING_S
            }
        self._owners[session] = (caller, now)

    # --- watches --------------------------------------------------------------------------------------------------

    def open_watch(self, name: str) -> Watch:
        """Open a watch for the caller.

        Raises:
            Forbidden: another caller has a watch of this name.
        """
        caller = caller_of(current())
        self.watch(self._watches.find(name))
        return self._watches.open(name, caller)

    def watch(self, watch: Watch | None) -> None:
        """Check that the caller owns this watch.

        Raises:
            Forbidden: another caller owns it.
        """
        caller = caller_of(current())
        if watch is not None and watch.owner != caller:
            raise self._authorization.stranger(caller, watch.name)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _denied(self, refusal: Refusal, fresh: bool) -> None:
        if fresh:
            # Logged once for each caller, right, name and principal.
            log.warning(
                "store.forbidden",
                caller=refusal.caller,
                right=refusal.right,
                target=refusal.target[:200],
                **({"principal": refusal.principal} if refusal.principal else {}),
            )
        # Names chosen by callers must not create an unbounded number of series.
        caller = _counted(self._counted_callers, refusal.caller[:100])
        if refusal.right == "defer":
            self._recorder.counter(
                "tasks_forbidden",
                "Tasks that were rejected by [access].",
                caller=caller,
                service=_counted(self._counted_services, refusal.target.rpartition(".")[0][:100]),
            ).add()
        else:
            self._recorder.counter(
                "store_forbidden",
                "Requests to the store that [access] rejected, other than for deferring tasks.",
                caller=caller,
                right=refusal.right,
            ).add()


def _counted(known: set[str], name: str) -> str:
    """The label of a name: the name itself for the first COUNTED_CALLERS names, then OTHERS."""
    if name not in known:
        if len(known) >= COUNTED_CALLERS:
            return OTHERS
        known.add(name)
    return name


def check_table(methods: Sequence[str]) -> None:
    """Raises:
    SetupError: a method of the store is missing in the table of operations.
    """
    missing = sorted(set(methods) - set(OPERATIONS))
    if missing:
        raise SetupError(f"engines.authorization.OPERATIONS does not say what is authorized for: {', '.join(missing)}")


def caller_of(call: CallContext | None) -> str:
    """The caller's name in the rules; "" outside of a call."""
    return name_of(call.user, call.caller) if call is not None else ""

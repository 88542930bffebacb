"""The store's callers: each operation is authorized for what it touches, before anything of it is done.

Owns: who the caller of the running method is, which caller a session or a watch belongs to, and what a denial leaves
behind.
Leaves to others: the table of operations and the decision (engines.authorization), the rules (policy.access), proving
names (transport), doing what is allowed (service).

The store decides, because it is the last to know by its link who asks: the worker that runs a task sees only the store.
What the store does later by itself (the next task of a chain, a delivery, another attempt) was authorized when a caller
asked for it: each task of a chain by its queue, a subscription by its queue and each of its patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from mesh.calls.context import CallContext, current
from mesh.calls.door import COUNTED_CALLERS, OTHERS
from mesh.clock import Clock
from mesh.engines.authorization import OPERATIONS, Authorization, Refusal
from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite.core import Core
from mesh.errors import LeaseLost, SetupError
from mesh.policy.access import Access
from mesh.store.dispatch import Dispatch
from mesh.store.sessions import Sessions
from mesh.store.watches import Watch, Watches
from mesh.tasks.contract import Offer
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder

log = get_logger("mesh.store")

#: Owners of sessions are looked through when there are so many more than sessions; those of sessions that are over go.
SPARE_OWNERS: Final = 1024
#: A session is known to be over no sooner than this after its owner was noted: it may just be attaching.
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
        """`identity`: of the store, in errors: its mesh.toml is the one that counts.

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
        # session → (the caller that it belongs to, when that was noted).
        self._owners: dict[str, tuple[str, float]] = {}
        # Queues of durable handlers, as workers declared them last; asked for each task, so kept beside the core.
        self._subscriptions = {
            name for name in core.names() if (said := core.declared(name)) is not None and said.patterns
        }
        self._authorization = Authorization(
            access, identity, subscription=self._subscriptions.__contains__, denied=self._denied
        )

    # --- names ----------------------------------------------------------------------------------------------------

    def check(self, operation: str, *names: str) -> None:
        """Raises:
        Forbidden: the caller may not do this with one of these names.
        """
        self._authorization.check(name_of(current()), operation, *names)

    def shown(self, operation: str) -> Callable[[str], bool]:
        """Which names a listing may show to the caller."""
        caller = name_of(current())
        return lambda name: self._authorization.shown(caller, operation, name)

    def refusals(self, units: Sequence[Unit]) -> dict[int, Outcome]:
        """The units that the caller may not ask for, by their place; nothing of them is to be done."""
        caller = name_of(current())
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
                # It may be known and leased by the time that the unit is done: a job that waits for the disk before it.
                lost = f"job {unknown[0][:80]} is not known: it never was, or it was forgotten after its time"
                refused[place] = Outcome(error=LeaseLost(lost, details={"job": unknown[0][:80]}).to_wire())
            unknown.clear()
        return refused

    # --- sessions -------------------------------------------------------------------------------------------------

    def attach(self, offer: Offer) -> None:
        """The caller attaches as this worker; its session is the caller's from here on.

        Raises:
            Forbidden: it may not, or the session is another's.
        """
        caller = name_of(current())
        self._check_owner(caller, offer.session)
        found = self._authorization.offer(caller, offer)
        if found is not None:
            raise found.error()
        for queue in offer.queues:
            (self._subscriptions.add if queue.patterns else self._subscriptions.discard)(queue.name)
        self._note(offer.session, caller)

    def session(self, session: str) -> None:
        """The caller speaks for this session.

        Raises:
            Forbidden: it is another's.
        """
        self._check_owner(name_of(current()), session)

    def _check_owner(self, caller: str, session: str) -> None:
        owner = self._owners.get(session)
        if owner is not None and (session in self._sessions or self._clock.now() < owner[1] + ATTACHING_S):
            if owner[0] != caller:
                raise self._authorization.stranger(caller, session)
        elif session in self._sessions:
            # It is known by its leases alone, since the store was restarted: it is of one who may work for those.
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
        """A watch of the caller.

        Raises:
            Forbidden: another has one of this name.
        """
        caller = name_of(current())
        self.watch(self._watches.find(name))
        return self._watches.open(name, caller)

    def watch(self, watch: Watch | None) -> None:
        """The caller speaks for this watch.

        Raises:
            Forbidden: it is another's.
        """
        caller = name_of(current())
        if watch is not None and watch.owner != caller:
            raise self._authorization.stranger(caller, watch.name)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _denied(self, refusal: Refusal, fresh: bool) -> None:
        if fresh:
            # Once for each caller, right and name: it is remembered.
            log.warning("forbidden", caller=refusal.caller, right=refusal.right, target=refusal.target[:200])
        # What callers make up must not become series without end.
        caller = _counted(self._counted_callers, refusal.caller[:100])
        if refusal.right == "defer":
            self._recorder.counter(
                "tasks_forbidden",
                "Tasks that [access] did not let a caller defer.",
                caller=caller,
                service=_counted(self._counted_services, refusal.target.rpartition(".")[0][:100]),
            ).add()
        else:
            self._recorder.counter(
                "store_forbidden",
                "What [access] did not let a caller do at the store, beside deferring tasks.",
                caller=caller,
                right=refusal.right,
            ).add()


def _counted(known: set[str], name: str) -> str:
    """The label of a name: itself for the first hundred."""
    if name not in known:
        if len(known) >= COUNTED_CALLERS:
            return OTHERS
        known.add(name)
    return name


def check_table(methods: Sequence[str]) -> None:
    """Raises:
    SetupError: the store has a method of which the table of operations does not say what is authorized.
    """
    missing = sorted(set(methods) - set(OPERATIONS))
    if missing:
        raise SetupError(f"engines.authorization.OPERATIONS does not say what is authorized for: {', '.join(missing)}")


def name_of(call: CallContext | None) -> str:
    """The name that rules know a caller by: as calls.door has it."""
    if call is None:
        return ""
    return call.user or call.caller.rpartition("-")[0] or call.caller

"""Calls and streams from this process to any instance of a service.

Owns: the path from a target to an answer: sending, waiting for an instance, failover, timeout and cancellation.
Leaves to others: links (pool), choosing an instance (choosing), the decision table (failover), the queue of waiting
calls (waiting), errors for unreachable services (unreached), which instances exist (discovery), bytes (signature,
protocol).

A call is processed synchronously from `call` to the socket's outbox, and from the socket back to the future: one
decision per event, without a task or a timer of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

from mesh.calls import unreached
from mesh.calls.answers import decode_any
from mesh.calls.checks import LONGEST_S, Duration, bounded, check_meta, check_trace, seconds, split_target
from mesh.calls.choosing import choose, choose_beyond, choose_with_credit
from mesh.calls.context import CURRENT
from mesh.calls.expiry import Expiries
from mesh.calls.failover import FAILOVER, REFUSALS, Trouble, Verdict
from mesh.calls.mirroring import Mirror
from mesh.calls.options import NO_OPTIONS, CallOptions
from mesh.calls.pool import Group, Handle, Pool
from mesh.calls.propagation import tenant_of
from mesh.calls.request import Call, Decode, Flow, Order, Stream
from mesh.calls.route import Route
from mesh.calls.waiting import WaitingRoom
from mesh.clock import Clock, Timer
from mesh.config import CallSettings
from mesh.discovery.agent import Agent
from mesh.discovery.record import Instance
from mesh.discovery.table import Change
from mesh.errors import (
    BadReply,
    DeadlineExceeded,
    LinkLost,
    MeshError,
    Overloaded,
    TooLarge,
    Unavailable,
)
from mesh.policy.budget import RetryBudget
from mesh.protocol.caller import Caller
from mesh.protocol.deadline import to_budget
from mesh.protocol.stream import WINDOW
from mesh.telemetry.metrics import Recorder
from mesh.telemetry.traces import current as TRACE
from mesh.transport.contract import Transport

#: How long calls that waited for a first instance also wait for the other instances that are being dialled.
PATIENCE_S: Final = 0.02

#: The group of all instances, for the methods that every worker answers. Nearly all calls to it name one instance, so
#: links are opened to the named instances only, not to all workers of the mesh.
WORKER: Final = "$worker"

Request = Call | Flow


class Client:
    """The calling side of a process. It belongs to one event loop."""

    def __init__(
        self,
        *,
        transport: Transport,
        clock: Clock,
        agent: Agent,
        identity: str,
        epoch: int,
        settings: CallSettings,
        recorder: Recorder,
        rng: random.Random | None = None,
        home: Callable[[str], str] = lambda service: "",
    ) -> None:
        """Args:
        home: maps a service to the host that is preferred for its calls; "" for no preference.
        """
        self._home = home
        self._clock = clock
        self._now = clock.now
        self._agent = agent
        self._settings = settings
        self._recorder = recorder
        self._random = (rng or random.Random()).random
        self._loop = asyncio.get_running_loop()
        self._expiries = Expiries(clock)
        self._budget = RetryBudget(settings.retry_ratio, float(settings.retry_reserve))
        self._groups: dict[str, Group] = {}
        self._routes: dict[str, Route] = {}
        self._waiting: WaitingRoom[Request] = WaitingRoom(settings.wait_limit)
        #: (when to check a waiting call, since when it waits, the call). In order, because all wait equally long.
        self._overdue: deque[tuple[float, float, Request]] = deque()
        self._looking: Timer | None = None
        self._patience: dict[Group, Timer] = {}
        self._mirror: Mirror | None = None
        self._closed = False
        self._pool = Pool(
            transport,
            clock,
            rng or random.Random(),
            lambda: Caller(identity, epoch, settings.max_body_bytes),
            self._unpark,
        )
        agent.on_change(self._changed)
        agent.on_certain(self._judge_again)

    # --- calls and streams --------------------------------------------------------------------------------

    def call(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        options: CallOptions = NO_OPTIONS,
        *,
        decode: Decode = decode_any,
    ) -> Call:
        """Begin a call and return the awaitable for its answer.

        Args:
            target: "service.method".
            body: the encoded arguments.
            encoding: the encoding of `body`: MSGPACK, JSON or RAW of mesh.protocol.messages.
            decode: (body, encoding) -> the value of the future.

        Raises, when awaited:
            MeshError: see architecture.md for which, and mesh.errors for what to do.
        """
        if options.source is not None:
            return cast(
                Call, self._loop.create_task(_answer(self.stream(target, body, encoding, options, decode=decode)))
            )
        route = self._routes.get(target) or self._route(target)
        now = self._now()
        if route.version != route.group.version:
            route.refresh()
        timeout = options.timeout
        if timeout is None:
            timeout = self._settings.timeout_s if route.timeout_s is None else route.timeout_s
        elif type(timeout) is not float:
            timeout = seconds(target, "timeout", timeout)
        order = Order(
            route,
            body,
            encoding,
            now + timeout,
            now,
            now,
            route.idempotent,
            options.trace,
            options.meta,
            options.key,
            options.instance,
        )
        if options.avoid is not None:
            order.tried = dict((options.avoid,))
        call = Call(loop=self._loop)
        call.client = self
        call.order = order
        call.decode = decode
        call.id = call.slot = 0
        self._begin(call, order, now, options.idempotent)
        return call

    def stream(
        self,
        target: str,
        body: Any,
        encoding: int = 0,
        options: CallOptions = NO_OPTIONS,
        *,
        decode: Decode = decode_any,
    ) -> Stream:
        """Begin a stream and return the iterator over its items. Arguments as for `call`."""
        # As in `call`: a function for both would cost 1 % of a call.
        route = self._routes.get(target) or self._route(target)
        now = self._now()
        if route.version != route.group.version:
            route.refresh()
        timeout = options.timeout
        if timeout is None:
            timeout = self._settings.stream_timeout_s if route.timeout_s is None else route.timeout_s
        elif type(timeout) is not float:
            timeout = seconds(target, "timeout", timeout)
        order = Order(
            route,
            body,
            encoding,
            now + timeout,
            now,
            now,
            route.idempotent,
            options.trace,
            options.meta,
            options.key,
            options.instance,
        )
        flow = Flow(self, order, decode, options.source, options.window or WINDOW)
        self._begin(flow, order, now, options.idempotent)
        return Stream(flow)

    def timeout_of(self, target: str, timeout: Duration | None, *, stream: bool = False) -> float:
        """The timeout in seconds of a call or stream: the given one, the method's own, or the configured one.

        Raises:
            BadRequest: the target or the timeout is invalid.
        """
        route = self._routes.get(target) or self._route(target)
        if route.version != route.group.version:
            route.refresh()
        if timeout is not None:
            return seconds(target, "timeout", timeout)
        if route.timeout_s is not None:
            return route.timeout_s
        return self._settings.stream_timeout_s if stream else self._settings.timeout_s

    def is_idempotent(self, target: str) -> bool:
        """Whether a method declares that running it twice does no harm.

        Raises:
            BadRequest: the target is invalid.
        """
        route = self._routes.get(target) or self._route(target)
        if route.version != route.group.version:
            route.refresh()
        return route.idempotent

    def may_retry(self) -> bool:
        """Take one retry from the budget of this process; False when it is exhausted."""
        return self._budget.withdraw(self._now())

    def use(self, service: str) -> None:
        """Open links to a service's instances before the first call needs them."""
        group = self._group(service)
        if not group.whole:
            self._reach(group, None)

    def instances(self, service: str) -> Sequence[Instance]:
        """The instances that discovery lists now, with or without an open link."""
        return self._agent.table.instances(service)

    def parked(self) -> int:
        """How many calls wait for an instance."""
        return len(self._waiting)

    def links(self, service: str) -> int:
        """How many instances of a service can be called now."""
        group = self._groups.get(service)
        return len(group.ready) if group is not None else 0

    def on_ready(self, service: str, woken: asyncio.Future[None]) -> Callable[[], None]:
        """Resolve `woken` when an instance of the service becomes callable; returns a function that stops this."""
        return self._waiting.watch(service, woken)

    # --- from a target to an instance -------------------------------------------------------------------------

    def _route(self, target: str) -> Route:
        service, method = split_target(target)
        stats = self._recorder.method("client", service, method)
        route = self._routes[target] = Route(target, method, self._group(service), stats)
        return route

    def _group(self, service: str) -> Group:
        group = self._groups.get(service)
        if group is None:
            if service == WORKER:
                group = self._groups[service] = Group(service, whole=False)
            else:
                group = self._groups[service] = Group(service, self._home(service))
                self._add(group, self._agent.table.instances(service))
        return group

    def _add(self, group: Group, instances: Iterable[Instance]) -> None:
        for instance in instances:
            if instance.endpoint and instance.id not in group.handles:
                self._pool.add(group, instance)

    def _reach(self, group: Group, wanted: str | None) -> bool:
        """Open a link to the instance `wanted` of a group that is not whole, or to all instances when it is None.

        Returns whether an instance became callable at once.
        """
        ready = len(group.ready)
        if wanted is None:
            group.whole = True
            self._add(group, self._agent.table)
        elif (instance := self._agent.table.get(wanted)) is not None:
            self._add(group, (instance,))
        return len(group.ready) > ready

    def _begin(self, request: Request, order: Order, now: float, idempotent: bool | None) -> None:
        """Add the deadline and trace of the surrounding call to the order, and dispatch it."""
        route: Route = order.route
        if not order.deadline_at < now + LONGEST_S:  # written this way, it is also true for NaN
            order.deadline_at = bounded(route.target, order.deadline_at, now)
        if idempotent is not None:
            order.idempotent = idempotent
        outer = CURRENT.get()
        if outer is not None:
            if outer.deadline_at < order.deadline_at:
                order.deadline_at = outer.deadline_at
            if order.trace is None:
                order.trace = outer.trace
        elif order.trace is None:
            order.trace = TRACE.get() or None
        carried = outer.carried if outer is not None else None
        if order.meta is None:
            # Checked when it was set or received; neither side changes the map.
            order.meta = carried
        else:
            if carried is not None:
                order.meta = {**carried, **order.meta}
            check_meta(order.meta)
        if order.trace is not None:
            check_trace(order.trace)
        route.stats.in_flight += 1
        self._budget.deposit(now)
        if order.deadline_at <= now:
            self._finish(request, DeadlineExceeded(f"{route.target}: the deadline had passed before the call was sent"))
            return
        self._expiries.watch(request, order.deadline_at)
        self._dispatch(request, order, now)

    def _dispatch(self, request: Request, order: Order, now: float) -> None:
        if self._closed:
            self._finish(request, Unavailable("this node is closed"))
            return
        route: Route = order.route
        group = route.group
        ready = group.first
        if len(ready) == 1 and order.instance is None and order.key is None and order.tried is None:
            handle: Handle | None = ready[0]
        else:
            handle = choose(order, ready, now, self._random)
        if ready is not group.ready and (handle is None or handle.in_flight >= handle.places):
            handle = choose_beyond(order, now, self._random)
            split = group.split
            if split is not None and type(request) is Call and split.mirrors(order, handle, self._random):
                self._tap(request)
        if handle is None:
            self._park(request, order)
            return
        peer = handle.peer
        caller = peer.caller
        body = order.body
        if len(caller.calls) >= caller.credit:
            handle = choose_with_credit(order, now, self._random)
            if handle is None:
                full = f"every link has {caller.credit} calls in flight, its limit"
                self._finish(request, Overloaded(f"{route.target}: {full}"))
                return
            peer = handle.peer
            caller = peer.caller
        if len(body) > caller.max_body:
            self._finish(
                request,
                TooLarge(f"{route.target}: a body of {len(body)} bytes; its workers accept at most {caller.max_body}"),
            )
            return
        order.handle = handle
        order.sent_at = now
        order.attempts += 1
        handle.in_flight += 1
        budget_ms = to_budget(order.deadline_at, now)
        if type(request) is Call:
            request.id = caller.call(route.target, budget_ms, body, order.encoding, order.trace, order.meta)
        else:
            window, sends = request.inflow.window, request.outbound is not None  # type: ignore[union-attr]  # a Flow
            request.id = caller.open(
                route.target, budget_ms, body, window, order.encoding, order.trace, order.meta, sends=sends
            )
        peer.sent(request)

    # --- copies for a canary ------------------------------------------------------------------------------------

    def _tap(self, call: Call) -> None:
        if self._mirror is None:
            self._mirror = Mirror(self._send_copy, self._recorder, self._now, self._random)
        self._mirror.tap(call)

    def _send_copy(self, order: Order, decode: Decode) -> Call:
        call = Call(loop=self._loop)
        call.client = self
        call.order = order
        call.decode = decode
        call.id = call.slot = 0
        self._begin(call, order, order.began_at, None)
        return call

    # --- waiting for an instance ------------------------------------------------------------------------------

    def _park(self, request: Request, order: Order) -> None:
        """No instance can be called now: wait for one until the deadline, unless waiting cannot help."""
        table = self._agent.table
        group = order.route.group
        order.handle = None
        if not group.whole and self._reach(group, order.instance):
            self._dispatch(request, order, self._now())
        elif order.trouble is not None and order.trouble.code == "overloaded":
            self._finish(request, order.trouble)
        elif order.instance is not None and self._is_gone(group, order.instance):
            self._finish(request, order.trouble or unreached.gone(order, group.handles.get(order.instance)))
        elif table.certain and group.name != WORKER and not table.known(group.name):
            self._finish(request, unreached.unknown(group.name, table.services()))
        elif group.refused:
            self._finish(request, unreached.refused(order, list(group.handles.values())))
        elif not group.handles and self._agent.refused:
            self._finish(request, unreached.no_hub(order, self._agent.refused))
        elif self._waiting.full and not self._displace(order):
            self._finish(request, Overloaded(f"{len(self._waiting)} calls are already waiting for an instance"))
        else:
            # A request is parked again after each change of a link; it counts as waiting since the first time.
            again = order.parked_at >= order.sent_at
            if not again:
                order.parked_at = self._now()
            self._waiting.enter(group.name, request, order.parked_at, tenant_of(order.meta))
            if not again and group.name != WORKER:
                self._look_later(order.parked_at + self._settings.wait_s, order.parked_at, request)

    def _displace(self, order: Order) -> bool:
        """Refuse a waiting call of the tenant with the most, in favour of this one; False when this one is refused."""
        displaced = self._waiting.displaceable(tenant_of(order.meta))
        if displaced is None:
            return False
        self._waiting.leave(displaced.order.route.group.name, displaced)
        self._finish(displaced, Overloaded(f"{len(self._waiting)} calls are already waiting for an instance"))
        return True

    def _look_later(self, at: float, since: float, request: Request) -> None:
        self._overdue.append((at, since, request))
        if self._looking is None:
            self._looking = self._clock.call_at(at, self._look)

    def _look(self) -> None:
        """End the calls that have waited long enough for a service without a reachable instance."""
        self._looking = None
        now = self._now()
        while self._overdue and self._overdue[0][0] <= now:
            _, since, request = self._overdue.popleft()
            group = request.order.route.group
            if self._waiting.since(group.name, request) != since:
                continue  # no longer waiting
            if not self._agent.table.certain or group.dialling:
                # Without a hub, or while it learns, absence proves nothing; a link that is being dialled may open soon.
                self._look_later(now + self._settings.wait_s, since, request)
                continue
            self._waiting.leave(group.name, request)
            self._finish(request, request.order.trouble or unreached.no_instance(request.order, self._settings.wait_s))
        if self._overdue and self._looking is None:
            self._looking = self._clock.call_at(self._overdue[0][0], self._look)

    def _judge_again(self) -> None:
        """A hub has finished learning: a service that no hub lists does not exist, so calls for it need not wait."""
        now = self._now()
        for service in self._waiting.services:
            if service != WORKER and not self._agent.table.known(service):
                for request in self._waiting.take(service):
                    self._dispatch(request, request.order, now)

    def _is_gone(self, group: Group, instance: str) -> bool:
        """Whether this one instance is unlisted or unreachable, so that waiting for it cannot help."""
        handle = group.handles.get(instance)
        if handle is None:
            table = self._agent.table
            return table.certain and table.get(instance) is None
        return handle.peer.unreachable

    def _unpark(self, group: Group) -> None:
        """Instances of a service became callable, or one turned out to be unreachable: dispatch the waiting calls,
        first come, first served."""
        if group.ready and group.dialling and len(self._waiting):
            # More links are about to open, within a millisecond on one host. The calls that waited should be spread
            # over all instances, not only the one that was connected first.
            if group not in self._patience:
                at = self._now() + PATIENCE_S
                self._patience[group] = self._clock.call_at(at, self._patience_over, group)
            return
        self._patience_over(group)

    def _patience_over(self, group: Group) -> None:
        timer = self._patience.pop(group, None)
        if timer is not None:
            timer.cancel()
        if group.ready or group.name == WORKER or any(handle.peer.unreachable for handle in group.handles.values()):
            now = self._now()
            for request in self._waiting.call_in(group.name):
                self._dispatch(request, request.order, now)

    # --- the ends of an attempt ---------------------------------------------------------------------------------

    def settled(self, request: Request, order: Order, code: str) -> None:
        """An answer came (`code` "" for success): count it, and record the instance's latency."""
        now = self._now()
        handle = order.handle
        handle.in_flight -= 1
        handle.latency.observe(now - order.sent_at, now)
        if handle.misses:
            handle.answered()
        self._expiries.forget(request)
        order.route.stats.end(now - order.began_at, code)

    def gave_up(self, request: Request, code: str) -> None:
        """The user cancelled, or the deadline has passed."""
        order = request.order
        now = self._now()
        handle = order.handle
        if handle is not None:
            handle.in_flight -= 1
            handle.peer.cancel(request.id)
            if code == "deadline_exceeded":
                # A missing answer counts as a slow one: otherwise a hung instance would keep its good latency.
                handle.latency.observe(now - order.sent_at, now)
                handle.missed()
        else:
            self._waiting.leave(order.route.group.name, request)
        self._expiries.forget(request)
        order.route.stats.end(now - order.began_at, code)

    def was_refused(self, request: Request, error: MeshError) -> None:
        """The instance refused the request without starting it."""
        # Items that were taken from the user's iterator cannot be sent again.
        begun = isinstance(request, Flow) and request.begun
        self._trouble(request, Trouble.FAILED if begun else REFUSALS.get(error.code, Trouble.FAILED), error)

    def was_lost(self, request: Request, sent: bool, reason: str) -> None:
        """The link was lost while the call was on it."""
        order = request.order
        where = order.handle.instance.id if order.handle is not None else "?"
        error = LinkLost(f"{order.route.target}: the link to {where} was lost before the answer arrived ({reason})")
        if isinstance(request, Flow) and request.begun:
            self._trouble(request, Trouble.FAILED, error)
        else:
            self._trouble(request, Trouble.LOST if sent else Trouble.UNSENT, error)

    def _trouble(self, request: Request, trouble: Trouble, error: MeshError) -> None:
        order = request.order
        now = self._now()
        if order.handle is not None:
            order.handle.in_flight -= 1
            tried = order.tried = order.tried or {}
            tried[order.handle.instance.id] = order.handle.peer.connections
        verdict = FAILOVER[trouble, order.idempotent]
        again = verdict is Verdict.ELSEWHERE or (
            verdict is Verdict.BUDGETED
            and order.attempts < self._settings.attempts
            and order.instance is None
            and self._budget.withdraw(now)
        )
        if again and not request.done():
            order.trouble = error
            self._dispatch(request, order, now)
        else:
            order.handle = None
            self._finish(request, error)

    def _finish(self, request: Request, error: MeshError) -> None:
        """End a request with an error; it is on no link."""
        order = request.order
        self._expiries.forget(request)
        order.route.stats.end(self._now() - order.began_at, error.code)
        request.fail(error)

    # --- changes from discovery -----------------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        touched: set[Group] = set()
        for instance, _ in change.left:
            for group in self._groups_of(instance):
                self._pool.remove(group, instance.id)
                touched.add(group)
        for instance in change.joined:
            for group in self._groups_of(instance):
                if group.whole:
                    self._add(group, (instance,))
                touched.add(group)
        anew: set[Group] = set()
        for instance in change.updated:
            for group in self._groups_of(instance):
                handle = group.handles.get(instance.id)
                if handle is not None and handle.renewed(instance):
                    anew.add(group)
                elif handle is not None:
                    group.version += 1
        for group in anew:
            group.refresh()
            if group.split is not None:
                touched.add(group)  # calls may wait for a release that has a share now
        for group in touched:
            self._unpark(group)

    def _groups_of(self, instance: Instance) -> list[Group]:
        """The groups in use that contain the instance."""
        return [group for name in (instance.service, WORKER) if (group := self._groups.get(name)) is not None]

    def close(self) -> None:
        """Close all links; calls and streams that are under way end with an error."""
        self._closed = True
        if self._mirror is not None:
            self._mirror.close()
        for request in self._waiting.empty():
            self._finish(request, Unavailable("this node is closed"))
        for timer in self._patience.values():
            timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        self._overdue.clear()
        self._pool.close()
        self._expiries.close()


async def _answer(stream: Stream) -> Any:
    """The one answer of a call with a client stream."""
    try:
        return await anext(stream)
    except StopAsyncIteration:
        raise BadReply("the call ended without an answer") from None
    finally:
        await stream.aclose()

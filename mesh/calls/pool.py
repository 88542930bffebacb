"""Links to the workers that this process calls: one per worker, dialled again for as long as discovery lists it.

Owns: the lifetime of each link, which calls are on it, and which instances can be called now.
Leaves to others: choosing an instance (choosing), what to do with the calls of a lost link (client).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from mesh.calls.cohorts import Split
from mesh.clock import Clock, Timer
from mesh.discovery.record import Instance
from mesh.discovery.share import Share, share_of
from mesh.errors import BadEndpoint
from mesh.policy.backoff import Backoff
from mesh.policy.balance import Ewma
from mesh.policy.balance_near import ANY, MISSES, busy, prefer
from mesh.protocol.allowance import Allowance, Flood
from mesh.protocol.caller import Caller
from mesh.protocol.codec import Buffer
from mesh.protocol.link import Link
from mesh.protocol.messages import CREDIT, END, ERROR, GOODBYE, ITEM, REFUSED, REPLY, WELCOME
from mesh.telemetry.logs import get_logger
from mesh.transport.contract import Channel, Refusal, Transport
from mesh.transport.refusals import IN_A_ROW

log = get_logger("mesh.calls")

#: The delay between attempts to connect to a worker that discovery lists and that does not answer.
REDIAL = Backoff(0.05, 2.0)
#: A worker that sent goodbye counts as one with so many failed attempts: it is dialled again only after seconds.
LEFT = 6


class Request(Protocol):
    """The interface of a call or stream to the link that carries it."""

    id: int

    def replied(self, message: list[Any]) -> None: ...
    def errored(self, wire: dict[str, Any]) -> None: ...
    def refused(self, wire: dict[str, Any]) -> None: ...
    def item(self, message: list[Any]) -> None: ...
    def ended(self) -> None: ...
    def credited(self, items: int) -> None: ...
    def link_lost(self, sent: bool, reason: str) -> None: ...


class Handle:
    """One instance, with the state that load balancing needs.

    Attributes:
        in_flight: calls from this process to the instance that have no answer yet.
        latency: smoothed latency of its answers to this process.
        places: how many calls the instance runs at once.
        misses: calls that it did not answer in time, since its last answer.
        busy: whether other callers keep it busy, by policy.balance_near.
        share: of a canary; None for an instance of the regular release.
    """

    __slots__ = ("busy", "group", "in_flight", "instance", "latency", "misses", "peer", "places", "share")

    def __init__(self, instance: Instance, group: Group, peer: Peer) -> None:
        self.instance = instance
        self.group = group
        self.peer = peer
        self.in_flight = 0
        self.latency = Ewma()
        self.places = instance.places or ANY
        self.misses = 0
        self.busy = busy(instance.load, False)
        self.share: Share | None = share_of(instance.meta)

    @property
    def near(self) -> bool:
        """Whether the instance is preferred to those of other hosts."""
        return self.instance.host == self.group.home and not self.busy and self.misses < MISSES

    def renewed(self, instance: Instance) -> bool:
        """Take over a changed record from the registry; returns whether the group must be refreshed."""
        share = self.share if instance.meta is self.instance.meta else share_of(instance.meta)
        was, now = (self.busy, self.share), (busy(instance.load, self.busy), share)
        self.instance = instance
        self.places = instance.places or ANY
        self.busy, self.share = now
        return was != now

    def missed(self) -> None:
        """The instance did not answer a call in time."""
        self.misses += 1
        if self.misses == MISSES:
            self.group.refresh()

    def answered(self) -> None:
        """The instance answered again after it had missed a call."""
        was, self.misses = self.misses, 0
        if was >= MISSES:
            self.group.refresh()


class Group:
    """All instances of one service, and which of them can be called now.

    Attributes:
        home: the preferred host; "" for no preference.
        handles: every instance that discovery lists, by id.
        ready: the instances with an open link.
        first: the preferred ones of `ready`; the same list object when there is no preference. Empty while a canary
            runs: then `split` decides, and calls to other services need no check for it.
        split: the two releases while a canary runs; else None.
        whole: whether the group has every instance, and not only those that a call named.
        version: incremented with every change of the attributes above.
    """

    __slots__ = ("_by_release", "first", "handles", "home", "name", "ready", "split", "version", "whole")

    def __init__(self, name: str, home: str = "", *, whole: bool = True) -> None:
        self.name = name
        self.home = home
        self.whole = whole
        # The group of all workers, which is not whole at first, has no releases: its calls name one worker.
        self._by_release = whole
        self.split: Split[Handle] | None = None
        self.handles: dict[str, Handle] = {}
        self.ready: Sequence[Handle] = []
        self.first: Sequence[Handle] = self.ready
        self.version = 0

    @property
    def dialling(self) -> bool:
        """Whether a first connection to some instance is still under way."""
        return any(handle.peer.dialling for handle in self.handles.values())

    @property
    def trouble(self) -> str:
        """Why a listed instance cannot be reached, as the end of an error message; "" when no reason is known."""
        for handle in self.handles.values():
            if handle.peer.trouble:
                return f": {handle.peer.place}: {handle.peer.trouble}"
        return ""

    @property
    def refused(self) -> bool:
        """Whether keys allow no link to any instance: waiting cannot help until the keys are corrected."""
        return bool(self.handles) and all(handle.peer.refused for handle in self.handles.values())

    def refresh(self) -> None:
        """Recompute `ready`, `first` and `split`."""
        ready = self.ready = [handle for handle in self.handles.values() if handle.peer.open]
        if self._by_release and any(handle.share is not None for handle in self.handles.values()):
            self.first = ()
            self.split = Split(self.name, self.handles.values(), _prefer_near if self.home else None)
        else:
            self.first = _prefer_near(ready) if self.home else ready
            self.split = None
        self.version += 1


def _prefer_near(ready: Sequence[Handle]) -> Sequence[Handle]:
    return prefer(ready, _is_near)


def _is_near(handle: Handle) -> bool:
    return handle.near


class Peer:
    """One worker and the link to it, if one is open now. The session of transport.contract on the dialling side."""

    __slots__ = (
        "_allowance",
        "_channel",
        "_failures",
        "_flushed",
        "_pool",
        "_redial",
        "_refusals",
        "caller",
        "calls",
        "connections",
        "endpoint",
        "handles",
        "open",
        "trouble",
    )

    def __init__(self, pool: Pool, endpoint: str) -> None:
        self.endpoint = endpoint
        self.handles: set[Handle] = set()
        self.caller = pool.new_caller()
        self.calls: dict[int, Request] = {}
        self.open = False
        #: How many connections there have been; distinguishes a new one from the one on which a call was lost.
        self.connections = 0
        #: Why the last attempt to connect failed; "" when it succeeded.
        self.trouble = ""
        self._pool = pool
        self._allowance = Allowance()
        self._channel: Channel | None = None
        self._failures = 0
        self._refusals = 0  # consecutive failures up to now that keys caused
        self._flushed = 0  # the last call id that was handed to the socket
        self._redial: Timer | None = None

    # --- called by the client ---------------------------------------------------------------------------

    @property
    def dialling(self) -> bool:
        """Whether the link may open at any moment: it is being dialled, and no attempt has failed yet."""
        return not self.open and self._failures == 0

    @property
    def unreachable(self) -> bool:
        """Whether dialling again after the loss of the link failed too: on one host, the process has ended."""
        return not self.open and self._failures > 1

    @property
    def refused(self) -> bool:
        """Whether keys do not allow the link. Dialling goes on nevertheless, as the keys may be corrected."""
        return not self.open and self._refusals >= IN_A_ROW

    @property
    def place(self) -> str:
        """The endpoint without its parameters, for messages."""
        return self.endpoint.partition("?")[0]

    @property
    def credit_left(self) -> int:
        """How many more calls this link carries now."""
        return self.caller.credit - len(self.caller.calls)

    def sent(self, request: Request) -> None:
        """A request was queued on `caller`: route its answers to `request`, and wake the channel to send."""
        self.calls[request.id] = request
        self._channel.wake()  # type: ignore[union-attr]  # an open link has its channel

    def cancel(self, call: int) -> None:
        """Tell the worker that the caller no longer waits for this call."""
        if self.calls.pop(call, None) is not None:
            self.caller.cancel(call)
            self._wake()

    def grant(self, call: int, items: int) -> None:
        """Allow more items of a stream."""
        self.caller.grant(call, items)
        self._wake()

    def item(self, call: int, body: Buffer, encoding: int) -> None:
        """Send one item of a client stream."""
        self.caller.item(call, body, encoding)
        self._wake()

    def end(self, call: int) -> None:
        """A client stream is complete."""
        self.caller.end(call)
        self._wake()

    def _wake(self) -> None:
        if self._channel is not None:
            self._channel.wake()

    # --- called by the transport --------------------------------------------------------------------------

    def opened(self) -> None:
        self.connections += 1
        self.caller.connected()
        self._wake()

    def data_to_send(self) -> list[list[Buffer]]:
        self._flushed = self.caller.last_id
        return self.caller.data_to_send()

    def receive(self, frames: list[Buffer]) -> None:
        calls = self.calls
        for message in self.caller.receive(frames):
            kind = message[0]
            if kind == REPLY:
                calls.pop(message[1]).replied(message)
            elif kind == ITEM:
                calls[message[1]].item(message)
            elif kind == END:
                calls.pop(message[1]).ended()
            elif kind == ERROR:
                calls.pop(message[1]).errored(message[2])
            elif kind == REFUSED:
                calls.pop(message[1]).refused(message[2])
            elif kind == CREDIT:
                calls[message[1]].credited(message[2])
            elif kind == WELCOME:
                self._failures = self._refusals = 0
                self.trouble = ""
                self._turn(True)
            elif kind == GOODBYE:
                self._turn(False)
        if self.caller.idle:
            idle, self.caller.idle = self.caller.idle, 0
            if not self._allowance.take(idle, self._pool.clock.now()):
                raise Flood("more messages than the calls on the link and its allowance permit")
        if self.caller.state is Link.LEAVING and not self.caller.calls:
            # Nothing is outstanding in either direction: if this side closes first, the leaving worker need not wait.
            # The close flushes the pong that acknowledges the goodbye.
            self._channel.close("the worker is leaving")  # type: ignore[union-attr]
        elif not self.handles and not self.caller.calls:
            self.hang_up("no longer listed")
        elif self.caller.owes:
            self._wake()

    def lost(self, reason: str) -> None:
        self._channel = None
        flushed = self._flushed
        if self.caller.state is Link.LEAVING:
            # The worker left, and the registry will report it soon: do not dial it again at once.
            self._failures = max(self._failures, LEFT)
        self.caller.lost()
        self.caller = self._pool.new_caller()
        self._flushed = 0
        self._failures += 1
        self._refusals = self._refusals + 1 if isinstance(reason, Refusal) else 0
        orphans, self.calls = self.calls, {}
        if self.open:
            self._turn(False)
        else:
            self.trouble = reason
            self._tell_groups()  # calls that wait for this instance may have to fail over
        for request in orphans.values():
            request.link_lost(request.id <= flushed, reason)
        if self.handles:
            log.debug("link.lost", endpoint=self.endpoint, reason=reason, calls=len(orphans))
            self._dial_later()

    # --- lifetime -------------------------------------------------------------------------------------------

    def _turn(self, is_open: bool) -> None:
        if self.open != is_open:
            self.open = is_open
            if is_open:
                self._pool.opened({handle.group for handle in self.handles})
            else:
                self._tell_groups()

    def _tell_groups(self) -> None:
        for group in {handle.group for handle in self.handles}:
            self._pool.changed(group)

    def dial(self) -> None:
        """Connect, unless a connection is open or being opened."""
        self._redial = None
        if self._channel is None and self.handles and not self._pool.closed:
            try:
                self._channel = self._pool.transport.dial(self.endpoint, self._begin)
            except BadEndpoint as exc:
                log.warning("instance.endpoint_invalid", reason=exc.message)

    def _begin(self, channel: Channel) -> Peer:
        self._channel = channel
        return self

    def _dial_later(self) -> None:
        if self._redial is None and not self._pool.closed:
            clock = self._pool.clock
            delay = REDIAL.delay(self._failures, self._pool.random())
            self._redial = clock.call_at(clock.now() + delay, self.dial)

    def hang_up(self, reason: str) -> None:
        """Close the link now."""
        if self._redial is not None:
            self._redial.cancel()
            self._redial = None
        if self._channel is not None:
            self._channel.close(reason)


class Pool:
    """Every link of this process, by endpoint."""

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        rng: random.Random,
        new_caller: Callable[[], Caller],
        changed: Callable[[Group], None],
    ) -> None:
        """`changed(group)` is called after the set of ready instances of a service has changed."""
        self.transport = transport
        self.clock = clock
        self.random = rng.random
        self.new_caller = new_caller
        self.closed = False
        self._changed = changed
        self._opened: dict[Group, bool] = {}  # in this loop turn -> whether a refresh is due after it
        self._peers: dict[str, Peer] = {}

    def add(self, group: Group, instance: Instance) -> None:
        """Discovery lists an instance: open a link to its worker."""
        peer = self._peers.get(instance.endpoint)
        if peer is None:
            peer = self._peers[instance.endpoint] = Peer(self, instance.endpoint)
        handle = Handle(instance, group, peer)
        group.handles[instance.id] = handle
        peer.handles.add(handle)
        peer.dial()
        if peer.open:
            group.refresh()
        else:
            group.version += 1  # `ready` has not changed; without a refresh, adding thousands takes linear time

    def remove(self, group: Group, instance_id: str) -> None:
        """Discovery no longer lists the instance: send it no new calls; calls under way may finish."""
        handle = group.handles.pop(instance_id, None)
        if handle is None:
            return
        peer = handle.peer
        peer.handles.discard(handle)
        group.refresh()
        if not peer.handles:
            self._peers.pop(peer.endpoint, None)
            if not peer.calls:
                peer.hang_up("no longer listed")

    def changed(self, group: Group) -> None:
        """The ready instances of a group have changed, for example because a link was lost or a worker sent goodbye."""
        group.refresh()
        self._changed(group)

    def opened(self, groups: Iterable[Group]) -> None:
        """A link opened. One refresh per link would take quadratic time: of the links of a group that open in one turn
        of the loop, the first refreshes the group at once, and the others share one refresh after them."""
        if not self._opened:
            asyncio.get_running_loop().call_soon(self._take_opened)
        for group in groups:
            more = self._opened[group] = group in self._opened
            if not more:
                self.changed(group)

    def _take_opened(self) -> None:
        opened, self._opened = self._opened, {}
        for group, more in opened.items():
            if more:
                self.changed(group)

    def close(self) -> None:
        """Close all links."""
        self.closed = True
        for peer in list(self._peers.values()):
            peer.hang_up("closed")
        self._peers.clear()

"""The discovery agent of a process: registers its instances, and keeps a table of all instances.

Owns: periodic renewals, and notifying listeners of changes of the table.
Leaves to others: the connection to each hub (uplink), merging the views of several hubs (table), choosing an instance
(calls).

Only `leave`, `stop` and the `wait_…` methods wait for hubs, for a limited time: without a hub the process continues
with its last table.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from mesh.clock import Clock, Timer
from mesh.discovery.admission import Limits
from mesh.discovery.record import Instance
from mesh.discovery.registrations import Holdings
from mesh.discovery.shapes import Shapes
from mesh.discovery.table import Change, Table
from mesh.discovery.uplink import HubStatus, Uplink
from mesh.discovery.view import LEARNED, LEARNING
from mesh.errors import SetupError
from mesh.policy.backoff import Backoff
from mesh.telemetry.logs import get_logger
from mesh.transport.contract import Transport
from mesh.transport.refusals import IN_A_ROW

log = get_logger("mesh.discovery")

#: The states of a hub's view after it has sent a snapshot.
HEARD = (LEARNING, LEARNED)


class Agent:
    """Registers with every hub, renews, watches, and keeps one merged `table`. One per process.

    Attributes:
        table: the instances that this process knows.
        synced: whether some hub has sent a snapshot since the start, so that the table is filled. While all hubs are
            still learning, an instance may be missing: check `table.certain` first.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        hubs: Sequence[str],
        *,
        identity: str,
        epoch: int,
        renew_s: float = 1.0,
        connect_timeout_s: float = 2.0,
        leave_timeout_s: float = 1.0,
        limits: Limits | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Args:
        hubs: endpoints of the hubs; may be empty, then no instance is found.
        identity, epoch: of this process, as in `hello`.
        renew_s: renewal period; a hub with shorter leases requests a shorter one.
        limits: the limits of records; should equal those of the hubs.
        leave_timeout_s: how long `leave` and `stop` wait for hubs to confirm.
        rng: spreads the renewals and dials of many processes over time.
        """
        self.table = Table()
        self.synced = False
        self.identity = identity
        self._clock = clock
        self._renew_s = renew_s
        self._leave_timeout_s = leave_timeout_s
        self._rng = rng or random.Random()
        self._holdings = Holdings(limits)
        self._listeners: dict[object, Callable[[Change], None]] = {}
        self._when_certain: list[Callable[[], None]] = []
        self._certain = False
        self._waiters: dict[asyncio.Future[bool], Callable[[], bool]] = {}
        self._beating: Timer | None = None
        self._started = False
        # A tenth to a whole renewal period: all processes register with a restarted hub before it has learned.
        backoff = Backoff(renew_s / 10, renew_s)
        shapes = Shapes()  # shared by all hubs, as they send the same records
        self._uplinks = [
            Uplink(
                transport,
                clock,
                endpoint,
                identity=identity,
                epoch=epoch,
                table=self.table,
                holdings=self._holdings,
                shapes=shapes,
                tell=self._tell,
                backoff=backoff,
                rng=self._rng,
                connect_timeout_s=connect_timeout_s,
            )
            for endpoint in dict.fromkeys(hubs)
        ]

    # --- lifetime ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to dial the hubs; returns at once, whether they are reachable or not.

        Raises:
            BadEndpoint: a hub's endpoint is malformed.
        """
        if self._started:
            raise SetupError(f"agent {self.identity} was already started")
        self._started = True
        try:
            for uplink in self._uplinks:
                uplink.start()
        except BaseException:
            await self.stop()
            raise
        # The first renewal is at a random moment of the period: processes that start together do not renew together.
        self._beating = self._clock.call_at(self._clock.now() + self._rng.random() * self._renew_s, self._beat)

    async def stop(self) -> None:
        """Leave every hub, then close; takes at most twice `leave_timeout_s`."""
        if not self._started:
            return
        self._started = False
        try:
            await self.leave(*self._holdings.ids())
        finally:
            if self._beating is not None:
                self._beating.cancel()
                self._beating = None
            for uplink in self._uplinks:
                uplink.stop()
        await self._until(lambda: all(uplink.stopped for uplink in self._uplinks), self._leave_timeout_s)

    async def wait_synced(self, timeout: float) -> bool:
        """Wait until `synced`, for at most `timeout` seconds, or until keys turn out to allow no link. Returns
        `synced`."""
        await self._until(lambda: self.synced or bool(self.refused), timeout)
        return self.synced

    async def wait_heard(self, timeout: float) -> bool:
        """Wait until every hub has sent a snapshot, for at most `timeout` seconds; returns whether all have."""
        return await self._until(lambda: all(each.view in HEARD for each in self.hubs_status()), timeout)

    # --- what this process runs -------------------------------------------------------------------

    def register(self, *records: Instance) -> None:
        """Register instances with every hub, now and after each reconnection. Call again to update a record.

        Raises:
            SetupError: hubs would refuse a record, or the instance has left already with this epoch.
        """
        self._holdings.add(records)
        ids = [record.id for record in records]
        for uplink in self._uplinks:
            uplink.register(ids)

    def registered(self) -> tuple[Instance, ...]:
        """The records of the instances that this process runs."""
        return self._holdings.records()

    def update_load(self, instance_id: str, load: float) -> None:
        """Set an instance's load, 0.0 to 1.0; the next renewal sends it."""
        self._holdings.load(instance_id, load)

    async def leave(self, *instance_ids: str) -> None:
        """Deregister instances from every hub for good. Returns when each connected hub has notified its watchers, or
        after `leave_timeout_s`; at unreachable hubs their leases expire."""
        ended = [record for key in instance_ids if (record := self._holdings.end(key)) is not None]
        for uplink in self._uplinks:
            uplink.leave([(record.id, record.epoch) for record in ended])
        await self._until(lambda: not any(uplink.leaving for uplink in self._uplinks), self._leave_timeout_s)

    # --- what others run --------------------------------------------------------------------------

    def on_change(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call `callback` after each change of the table.

        Returns:
            A function that removes the callback.
        """
        key = object()
        self._listeners[key] = callback
        return lambda: self._listeners.pop(key, None) and None

    def on_certain(self, callback: Callable[[], None]) -> None:
        """Call `callback` each time `table.certain` becomes true, because a hub has learned."""
        self._when_certain.append(callback)

    def hubs_status(self) -> list[HubStatus]:
        """The status of each configured hub, in the order of configuration."""
        return [uplink.status() for uplink in self._uplinks]

    @property
    def refused(self) -> str:
        """Why keys allow no link to a hub, with its endpoint, when no hub can be reached; "" when there is another
        cause, or when some hub may still answer."""
        refused = [each for each in self._uplinks if each.refusals >= IN_A_ROW]
        if not refused or any(each.open or each.failures < IN_A_ROW for each in self._uplinks):
            return ""
        return f"{refused[0].endpoint}: {refused[0].reason}"

    @property
    def hearing(self) -> bool:
        """Whether some hub is connected and sends changes now."""
        return any(hub.view in HEARD for hub in self.hubs_status())

    # --- inside -----------------------------------------------------------------------------------

    def _beat(self) -> None:
        for uplink in self._uplinks:
            uplink.renew()
        self._tell(self.table.forget(self._clock.now()))
        wanted = [uplink.renew_s for uplink in self._uplinks if uplink.renew_s is not None]
        period = min([self._renew_s, *wanted])
        self._beating = self._clock.call_at(self._clock.now() + period, self._beat)

    def _tell(self, change: Change) -> None:
        if not self.synced:
            self.synced = any(view.hub_id for view in map(self.table.view, self._endpoints()) if view is not None)
        if change:
            self._yield_to_later_claims(change)
            for callback in tuple(self._listeners.values()):
                try:
                    callback(change)
                except Exception:
                    # A failing listener must not prevent the others from being notified.
                    log.exception("discovery.listener_failed")
        was, self._certain = self._certain, self.table.certain
        if self._certain and not was:
            for judge in self._when_certain:
                judge()
        for waiter, condition in tuple(self._waiters.items()):
            if not waiter.done() and condition():
                waiter.set_result(True)

    def _endpoints(self) -> list[str]:
        return [uplink.endpoint for uplink in self._uplinks]

    def _yield_to_later_claims(self, change: Change) -> None:
        for record in change.joined:
            mine = self._holdings.get(record.id)
            if mine is not None and mine.epoch < record.epoch:
                self._holdings.end(record.id)
                log.error("instance.id_taken", instance=record.id, by=record.worker)

    async def _until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until `condition` holds, checked after each change, for at most `timeout` seconds; returns whether it
        does."""
        if condition():
            return True
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = condition
        timer = self._clock.call_at(
            self._clock.now() + timeout, lambda: None if waiter.done() else waiter.set_result(False)
        )
        try:
            return await waiter
        finally:
            timer.cancel()
            del self._waiters[waiter]

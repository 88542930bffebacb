"""A node: one process's endpoint in the mesh. It finds services, calls them, emits events, and may answer calls.

Owns: assembling client, server, bus, engines and agent, closing them in order, and emitting events.
Leaves to others: each of those; the verbs (call_verbs, verbs); which services run here (worker); HTTP (gateway).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from mesh import ids
from mesh.calls.client import Client
from mesh.calls.intercepting import Calls, InterceptedClient
from mesh.calls.interceptors import Interceptor
from mesh.calls.offload import Offload
from mesh.calls.server import Server
from mesh.clock import Clock, LoopClock
from mesh.config import Settings
from mesh.config.access import OPERATOR
from mesh.discovery.admission import Limits
from mesh.discovery.agent import Agent
from mesh.discovery.table import Change, Table
from mesh.engines.choose import Engines
from mesh.engines.registry import EngineContext, Makers
from mesh.events.bus import Bus
from mesh.node.call_verbs import CallVerbs
from mesh.node.control import CONTROL_LIMIT, control_methods
from mesh.node.durable import Durable
from mesh.node.rpc import Rpc
from mesh.policy.access import Access, role_of
from mesh.resilience.table import Policies
from mesh.service.interceptors import Interceptors
from mesh.service.service import OWN, Service
from mesh.service.verbs import DurableVerbs
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.transport.advertise import unreachable
from mesh.transport.contract import Transport
from mesh.transport.zmq_transport import from_settings

log = get_logger("mesh.node")


class Node(CallVerbs, DurableVerbs):
    """One process in the mesh. Create it with `connect` (as a client); a worker creates its own.

    Attributes:
        identity: unique among the running processes; names the process in hellos, logs and metrics.
        settings: the configuration.
        table: the registered instances that this process knows.
        recorder: the metrics of this process.
        durable: access to the engines of tasks, durable events, state and locks.
        rng: the source of randomness.
        interceptors: those of this process.
        rpc: services by attribute, `n.rpc.greeting.hello("x")`, or typed, `n.rpc[Greeting].hello("x")`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        identity: str = "",
        transport: Transport | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        engines: Makers | None = None,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        """Args:
        engines: factories that replace the usual ones of some engines.
        interceptors: of this process, inside of those of mesh.toml.

        Raises:
            SetupError: an interceptor of mesh.toml cannot be imported.
            NotOffered: [engines] chooses an engine for something that it does not support.
            ConfigError: an engine cannot be loaded.
        """
        self.settings = settings
        self.identity = identity or ids.instance_id("client")
        self.epoch = ids.epoch()
        self.clock: Clock = clock or LoopClock()
        self.recorder = Recorder(self.clock)
        self.rng = rng or random.Random()
        # The role ("orders" in "orders-3f9ac2d1") determines the key of this process.
        role = role_of(self.identity)
        self.transport = transport or from_settings(settings, role, self.recorder)
        self.agent = Agent(
            self.transport,
            self.clock,
            settings.mesh.hubs,
            identity=self.identity,
            epoch=self.epoch,
            renew_s=settings.discovery.renew_s,
            limits=Limits(record_bytes=settings.discovery.record_bytes),
            connect_timeout_s=settings.links.connect_timeout_s,
            rng=self.rng,
        )
        self.table: Table = self.agent.table
        self.client = Client(
            transport=self.transport,
            clock=self.clock,
            agent=self.agent,
            identity=self.identity,
            epoch=self.epoch,
            settings=settings.calls,
            recorder=self.recorder,
            rng=self.rng,
            home=lambda service: settings.mesh.host if settings.service(service).prefer_local else "",
        )
        # The commands of operators and the framework's own processes work whatever the code of the deployment does.
        deployed = role != OPERATOR and not role.startswith(OWN)
        self.interceptors = Interceptors(settings if deployed else None, interceptors)
        self.policies: Policies | None = None
        if deployed:
            self.policies = Policies(settings.policies, self.table, self.client, self.clock, self.rng, self.recorder)
            self.agent.on_change(self._learn_policies)
        self._calls: Calls = self.client
        self.intercept(())
        self.bus = Bus(
            self.transport,
            self.table,
            self.clock,
            self.client.call,
            publisher=f"{self.identity}@{self.epoch}",
            recorder=self.recorder,
        )
        self.agent.on_change(lambda _: self.bus.changed())
        context = EngineContext(None, settings, self.client, self.clock, self.rng, self.recorder)
        self.durable = Durable(
            settings,
            Engines(context, engines),
            identity=self.identity,
            publisher=f"{self.identity}@{self.epoch}",
            clock=self.clock,
            rng=self.rng,
            recorder=self.recorder,
            table=self.table,
            emit_raw=self.bus.emit_raw,
        )
        self.offload: Offload | None = None
        self.server: Server | None = None
        self.rpc = Rpc(self)
        self._closed = False

    def intercept(self, classes: Sequence[type[Service]]) -> None:
        """Use the outgoing interceptors of the process and of these services, and the policies of methods."""
        if isinstance(self._calls, InterceptedClient):
            return
        policies = self.policies
        if self.interceptors.intercepts_outgoing(classes) or (policies is not None and policies.wanted):
            hooks = self.interceptors.hooks("outgoing")
            self._calls = InterceptedClient(self.client, hooks, self.clock, policies)

    def _learn_policies(self, change: Change) -> None:
        if self.policies is not None and self.policies.changed(change):
            self.intercept(())

    # --- life ---------------------------------------------------------------------------------------------

    async def start(self, wait_s: float = 0.0) -> None:
        """Begin to connect to hubs; wait at most `wait_s` seconds for the registry of the first one."""
        await self.agent.start()
        if wait_s > 0:
            await self.agent.wait_synced(wait_s)

    async def listen(self, endpoint: str = "") -> str:
        """Begin to answer calls, at first only those to the process itself.

        Returns the endpoint for the records of its instances.

        Raises:
            AddressInUse, BadEndpoint: see transport.contract.
        """
        calls = self.settings.calls
        self.offload = Offload(self.settings.worker.processes, self.settings.worker.threads)
        self.server = Server(
            transport=self.transport,
            clock=self.clock,
            identity=self.identity,
            epoch=self.epoch,
            recorder=self.recorder,
            offload=self.offload,
            credit=calls.credit,
            max_body=calls.max_body_bytes,
            traceback_on_wire=calls.traceback_on_wire,
            access=Access.of(self.settings.access),
            slow_s=self.settings.log.slow_s,
            debug=self.settings.log.level == "debug",
        )
        self.server.host(control_methods(self), CONTROL_LIMIT, CONTROL_LIMIT)
        bound = await self.server.start(endpoint or self.transport.endpoint(self.identity))
        if why := unreachable(bound, self.settings.mesh.hubs):
            log.warning("endpoint.not_routable", endpoint=bound, reason=why)
        return bound

    async def close(self) -> None:
        """Leave the hubs, fail pending calls, close every socket. A second call has no effect."""
        if self._closed:
            return
        self._closed = True
        # Engines first: ending a session properly takes a call.
        await self.durable.close()
        await self.bus.close()
        await self.agent.stop()
        if self.server is not None:
            await self.server.close()
        if self.offload is not None:
            await self.offload.close()
        if isinstance(self._calls, InterceptedClient):
            self._calls.close()
        self.client.close()
        await self.transport.close()

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- events -------------------------------------------------------------------------------------------

    async def emit(
        self,
        topic: str,
        data: Any = None,
        *,
        key: str | None = None,
        meta: dict[str, str] | None = None,
        durable: bool | None = None,
    ) -> None:
        """Publish an event: to one instance of each subscribed service, with an ack, and at most once to every instance
        that subscribed with `to="every"`. Returns when this is done; an event without subscribers is no error.

        Args:
            key: events of one key go to the same instance of a service, as long as it lives; durable ones reach each
                durable handler one after the other.
            durable: append the event to the log first, for handlers with `durable=True`, which receive it at least
                once, even when they start later; then send it to the other subscribers. Inside `atomic` a durable event
                is appended and sent when the block is committed; any other event is sent at once, there too. None:
                durable when [events] durable names the topic.

        Raises:
            BadTopic, BadArguments, TooLarge: the event cannot be sent; nothing was sent.
            NotAcknowledged: some service did not acknowledge it; all were tried. Never raised for a durable event,
                which is in the log already: emitting it again would append it twice.
            TryLater, Uncertain, Unwritable: only for a durable event; see `defer`.
        """
        room = self.durable
        if room.is_durable(topic) if durable is None else durable:
            await room.emit(topic, data, key, meta)
        else:
            if durable is None:
                room.warn_of_loss(topic)
            await self.bus.emit(topic, data, key=key, meta=meta)

    @property
    def _durable(self) -> Durable:
        return self.durable

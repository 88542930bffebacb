"""The lifecycle of a gateway process: from its start to the last answered request.

Owns: signals, and the order of start and stop.
Leaves to others: sockets (listeners), answering requests (server), closing connections without loss (connections), the
mesh (node.node).

Start: connect, receive the registry from a hub, then listen; a gateway without the registry must not take requests away
from gateways that have it.
Stop, on SIGTERM or SIGINT: stop accepting; answer pending requests, each with `Connection: close`; close idle
connections; leave the mesh. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from mesh import ids
from mesh.config import Settings
from mesh.discovery.record import Instance
from mesh.gateway.edge.registry import lifespans
from mesh.gateway.listeners.acme import Renewal
from mesh.gateway.listeners.opening import Listeners, as_bound
from mesh.gateway.listeners.reload import Reloading
from mesh.gateway.listeners.serving import Serving
from mesh.gateway.listeners.sockets import bind, shown
from mesh.gateway.listeners.tls import tls_of
from mesh.gateway.mounts.external import load
from mesh.gateway.mounts.registry import OWN
from mesh.gateway.ports import Node
from mesh.gateway.server import Gateway
from mesh.node.node import Node as MeshNode
from mesh.telemetry.logs import get_logger
from mesh.worker.worker import settle_memory

__all__ = ["bind", "check", "connect_node", "drain", "serve", "shown"]

_log = get_logger(__name__)

#: The service name under which every gateway is registered.
SERVICE: Final = "gateway"

#: How long a starting gateway waits for a hub before it listens anyway, so that it can report the problem over HTTP.
SYNC_S: Final = 5.0

#: How long each keep-alive connection may stay idle while draining. A client under load sends its next request within
#: milliseconds and then gets Connection: close; only connections that are really idle are closed without a request.
IDLE_GRACE_S: Final = 0.5

#: From the event of a listening socket to the protocol of the accepted connection both loops take at most three rounds.
ACCEPT_TURNS: Final = 3

#: How long a stream may go on while draining before an EventSource is told to connect again.
STREAM_GRACE_S: Final = 1.0

#: How often draining checks the connections.
LOOK_S: Final = 0.05

#: How long handlers may take to send the error of a cut off request, after the gateway has left the mesh.
LAST_WORDS_S: Final = 1.0

#: The same when there is no time left. (0 would mean no limit to aiohttp.)
AT_ONCE_S: Final = 0.05

#: Joins the mesh: the node, and the endpoint where it answers other processes.
Connect = Callable[[Settings], Awaitable[tuple[Node, str]]]


async def serve(
    settings: Settings,
    *,
    fd: int | None = None,
    host: str | None = None,
    port: int | None = None,
    connect: Connect | None = None,
    started: Callable[[str], object] | None = None,
    alone: bool = True,
) -> None:
    """Run a gateway until a signal ends it. To be run on the main thread's loop.

    Args:
        fd: a listening socket that this process has inherited, such as 0 under supervisor's [fcgi-program].
        host, port: where to listen otherwise; None uses the settings. Port 0 uses a free port.
        connect: how to join the mesh.
        started: called with the public address when the gateway listens.
        alone: the process runs nothing else, so that what it has made so far is excluded from garbage collection.

    Raises:
        AddressInUse: another process listens there.
        ConfigError: this machine has no such address, the port is forbidden to this user, or a mount or a certificate
            cannot be used.
        SetupError: `fd` is not a listening socket, or a mount failed to start.
    """
    listeners = Listeners(settings, fd=fd, host=host, port=port)
    settings = as_bound(settings, listeners.public)
    try:
        with Signals() as signals:
            # Before anything else: a mount that cannot be used must not cost a start.
            mounts = load(settings)
            node, endpoint = await (connect or connect_node)(settings)
            try:
                gateway = Gateway(node, settings, mounts)
                try:
                    await node.interceptors.start(node)
                    async with lifespans(gateway.front), gateway.mounts.lifespans():
                        await _run(gateway, endpoint, listeners, signals, started, alone)
                finally:
                    await node.interceptors.stop()
            finally:
                await node.close()
    finally:
        listeners.close()


async def check(settings: Settings) -> list[str]:
    """Load the certificates and the mounts, and build the gateway, without a mesh, a socket or a lifespan.

    Returns:
        The prefixes of the mounts of other packages.

    Raises:
        ConfigError: a setting is wrong, or a certificate or a mount cannot be used.
    """
    tls_of(settings)
    node = MeshNode(settings, identity=ids.instance_id(SERVICE))
    try:
        gateway = Gateway(node, settings)
        return [each.prefix for each in gateway.mounts if each.origin != OWN]
    finally:
        await node.close()


async def connect_node(settings: Settings) -> tuple[Node, str]:
    """A node that answers calls, so that other processes can fetch a gateway's metrics like those of a worker."""
    node = MeshNode(settings, identity=ids.instance_id(SERVICE))
    try:
        await node.start()
        return node, await node.listen()
    except BaseException:
        await node.close()
        raise


async def _run(
    gateway: Gateway,
    endpoint: str,
    listeners: Listeners,
    signals: Signals,
    started: Callable[[str], object] | None,
    alone: bool,
) -> None:
    await _first_word(gateway, signals)
    if signals.leave.is_set():
        return
    node = gateway.node
    addresses = {listener.kind: listener.address for listener in listeners}
    address = addresses["public"]
    serving = Serving(gateway)
    async with _certificates(gateway, listeners):
        try:
            await serving.start(listeners)
            rooms = gateway.front.rooms

            def register() -> None:
                node.agent.register(
                    Instance(
                        service=SERVICE,
                        id=node.identity,
                        epoch=node.epoch,
                        worker=node.identity,
                        host=gateway.settings.mesh.host,
                        pid=os.getpid(),
                        endpoint=endpoint,
                        events=rooms.endpoint,
                        subscriptions=rooms.subscriptions,
                        meta={"http": address},
                        doc="The HTTP front end.",
                    )
                )

            rooms.announce_with(register)
            register()
            if alone:
                settle_memory()
            others = {kind: each for kind, each in addresses.items() if kind != "public"}
            _log.info("gateway.ready", address=address, worker=node.identity, **others)
            if started is not None:
                started(address)
            await signals.leave.wait()
            _log.info("gateway.draining", busy=len(gateway.connections.busy))
            listeners.leave()
            await drain(gateway, serving)
        finally:
            await serving.shutdown(AT_ONCE_S)
            await gateway.front.rooms.close()
            gateway.log.flush()


@asynccontextmanager
async def _certificates(gateway: Gateway, listeners: Listeners) -> AsyncIterator[None]:
    """Keep the certificates current."""
    if listeners.tls is None:
        yield
        return
    clock, recorder = gateway.node.clock, gateway.node.recorder
    tasks = [asyncio.create_task(Reloading(listeners.tls, clock, recorder).run())]
    if gateway.settings.gateway.acme.domains:
        tasks.append(asyncio.create_task(Renewal(gateway.settings, clock, recorder).run()))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_word(gateway: Gateway, signals: Signals) -> None:
    clock = gateway.node.clock
    late_at = clock.now() + SYNC_S
    while not gateway.health.heard and clock.now() < late_at and not signals.leave.is_set():
        await clock.sleep(0.01)
    if not gateway.health.heard:
        _log.warning(
            "gateway.hub_missing",
            hubs=gateway.settings.mesh.hubs,
            remedy="start a hub; until one answers, requests for services get 503",
        )


async def drain(gateway: Gateway, serving: Serving) -> None:
    """Stop accepting, answer pending requests, and close every connection without a reset.

    Streams of Server-Sent Events that have not ended after STREAM_GRACE_S are ended with a hint to connect again, so
    that a release does not wait for them. Takes at most `gateway.drain_s`; then the remaining requests are ended with
    an error that the client can read.
    """
    clock = gateway.node.clock
    gateway.health.draining = True
    # Before each step, and after the last one, what has arrived or been accepted becomes a connection that is counted.
    for stop in (serving.pause_accepting, serving.stop_accepting, None):
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        if stop is not None:
            stop()
    begun_at = clock.now()
    drain_s = gateway.settings.gateway.drain_s
    over_at = begun_at + drain_s
    streams_over_at = begun_at + min(STREAM_GRACE_S, drain_s / 2)
    while serving.has_connections and clock.now() < over_at:
        if clock.now() >= streams_over_at:
            gateway.connections.end_streams()
        if not await serving.close_idle(clock.now(), IDLE_GRACE_S):
            break
        await clock.sleep(LOOK_S)
    if gateway.front.endings and clock.now() < over_at:
        # Applications that have sent their responses and go on: leaving the mesh would cancel them.
        await asyncio.wait(gateway.front.endings, timeout=over_at - clock.now())
    if serving.has_connections:
        _log.warning("drain.timed_out", busy=len(gateway.connections.busy))
        # The node ends their calls with an error, and the handlers answer with it.
        await gateway.node.close()
        await serving.shutdown(LAST_WORDS_S)


class Signals:
    """SIGTERM and SIGINT: the first asks to leave, the second ends the process at once, as it does for a worker."""

    _WATCHED: Final = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Signals:
        for number in self._WATCHED:
            self._loop.add_signal_handler(number, self._came, number.name)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._WATCHED:
            self._loop.remove_signal_handler(number)

    def _came(self, name: str) -> None:
        if self.leave.is_set():
            _log.warning("signal.repeated", signal=name, reason="the process ends at once, without a drain")
            os._exit(1)
        self.leave.set()

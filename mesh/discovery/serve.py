"""Runs a hub as a process, from its settings until a signal ends it.

Owns: choosing the endpoint of this process among the configured ones, and signals.
Leaves to others: the hub itself (hub), the command line (cli).
"""

from __future__ import annotations

import asyncio
import signal
from typing import Final

from mesh import ids
from mesh.clock import LoopClock
from mesh.config import Settings
from mesh.discovery.admission import Limits
from mesh.discovery.hub import Hub
from mesh.errors import AddressInUse, BadEndpoint, SetupError
from mesh.policy.access import Access
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.telemetry.published import EVERY_S, publish, withdraw
from mesh.transport.zmq_transport import from_settings

log = get_logger("mesh.hub")


#: Fields of registry.Counts that are published as metrics, with their help texts.
COUNTED: Final = {
    "registered": "Registrations of instances.",
    "left": "Instances that deregistered.",
    "expired": "Instances that lost their lease: the process died, hung or was cut off.",
    "refused": "Registrations that the hub rejected.",
}


async def serve(settings: Settings, endpoint: str = "") -> None:
    """Run a hub until SIGTERM or SIGINT.

    Args:
        endpoint: where to listen; "" takes the first of the configured hubs that can be bound here.

    Raises:
        AddressInUse: a live hub listens there already.
        SetupError: none of the configured endpoints belongs to this host.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    recorder = Recorder()
    transport = from_settings(settings, "hub", recorder)
    hub = Hub(
        transport,
        LoopClock(),
        identity=ids.instance_id("hub"),
        epoch=ids.epoch(),
        lease_s=settings.discovery.lease_s,
        limits=Limits(record_bytes=settings.discovery.record_bytes),
        access=Access.of(settings.access),
    )
    publishing: asyncio.Task[None] | None = None
    try:
        at = await listen(hub, [endpoint] if endpoint else settings.mesh.hubs)
        log.info("hub.ready", hub=hub.identity, endpoint=at)
        publishing = asyncio.create_task(_publish(hub, recorder, settings), name="mesh.hub.metrics")
        await stopping.wait()
        log.info("hub.stopping", hub=hub.identity)
    finally:
        if publishing is not None:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            withdraw(settings.mesh.run_dir, hub.identity)
        await hub.stop()
        await transport.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _publish(hub: Hub, recorder: Recorder, settings: Settings) -> None:
    """Write the hub's metrics to a file every few seconds, as a hub answers no calls that could return them."""
    recorder.gauge("hub_instances", lambda: hub.stats().instances, "Instances that the hub has registered.")
    recorder.gauge("hub_links", lambda: hub.stats().links, "Workers, gateways and clients connected to the hub.")
    recorder.gauge("hub_watchers", lambda: hub.stats().watchers, "Connected processes that watch the registry.")
    recorder.gauge("hub_learning", lambda: hub.stats().learning, "Whether the hub is in its first lease after a start.")
    failed = False
    while True:
        for name, help in COUNTED.items():
            recorder.counter(f"hub_{name}", help).value = getattr(hub.stats().counts, name)
        try:
            publish(settings.mesh.run_dir, "hub", hub.identity, recorder.snapshot())
            failed = False
        except OSError as exc:
            if not failed:
                log.warning("metrics.publish_failed", error=str(exc))
            failed = True
        await asyncio.sleep(EVERY_S)


async def listen(hub: Hub, endpoints: list[str]) -> str:
    """Listen on the first endpoint that belongs to this host and is free.

    Each of several hubs on one host takes the next one; addresses of other hosts cannot be bound and are skipped.
    """
    refused: list[str] = []
    taken: AddressInUse | None = None
    for endpoint in endpoints:
        try:
            return await hub.start(endpoint)
        except AddressInUse as exc:
            taken = exc
        except BadEndpoint as exc:
            refused.append(exc.message)
    if taken is not None:
        raise taken
    raise SetupError("none of mesh.hubs can be listened on here: " + "; ".join(refused))

"""A hub as a process: from its settings to its end by a signal.

Owns: which of the configured endpoints is this process's, and what signals do.
Leaves to others: the hub itself (hub), making a process of it (cli).
"""

from __future__ import annotations

import asyncio
import signal

from mesh import ids
from mesh.clock import LoopClock
from mesh.config import Settings
from mesh.discovery.hub import Hub
from mesh.errors import AddressInUse, BadEndpoint, SetupError
from mesh.policy.access import Access
from mesh.telemetry.logs import get_logger
from mesh.transport.zmq_transport import from_settings

log = get_logger("mesh.hub")


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
    transport = from_settings(settings, "hub")
    hub = Hub(
        transport,
        LoopClock(),
        identity=ids.instance_id("hub"),
        epoch=ids.epoch(),
        lease_s=settings.discovery.lease_s,
        access=Access((), settings.access.serve) if settings.access is not None else None,
    )
    try:
        at = await _listen(hub, [endpoint] if endpoint else settings.mesh.hubs)
        log.info("ready", hub=hub.identity, endpoint=at)
        await stopping.wait()
        log.info("stopping", hub=hub.identity)
    finally:
        await hub.stop()
        await transport.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _listen(hub: Hub, endpoints: list[str]) -> str:
    """Listen on the first endpoint that is this host's and free.

    Of several hubs on one host each takes the next; an address of another host cannot be bound, and is passed over.
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

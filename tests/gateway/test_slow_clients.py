"""Slow clients: heads, bodies and readers that take their time are closed, and the others do not notice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front, eventually

from mesh.config import GatewaySettings, Settings
from mesh.discovery.record import RouteRecord
from mesh.gateway.readers import Readers
from tests.chaos.slow_clients import p, run

LARGE = bytes(16 * 2**20)


@pytest.mark.timeout(90)
async def test_three_hundred_slow_clients() -> None:
    """A hundred of each kind, again and again. `python -m tests.chaos.slow_clients` does it with 2,000."""
    found = await run(300, 5.0, quick=True)
    assert found.alive
    assert found.failed == 0
    assert all(found.held_s[kind] for kind in ("heads", "bodies", "readers")), str(found)
    assert found.limits.get("write_timeout") or found.limits.get("max_unsent_total"), str(found)
    # A shared machine: the figures of a quiet one are in docs/edge.md.
    assert p(found.during_s, 0.99) <= max(3 * p(found.before_s, 0.99), 0.15), str(found)


class Wire:
    def __init__(self, size: int) -> None:
        self.size = size
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.size

    def abort(self) -> None:
        self.aborted = True


@dataclass(eq=False)
class Client:
    wire: Any
    unsent: int = 0
    moved_at: float = 0.0
    stuck_at: float = 0.0
    stuck_bytes: int = 0
    _paused: bool = True
    _current_request: object = None


def readers(node: FakeNode, **limits: Any) -> Readers:
    options = {"write_timeout_s": 30.0, "min_read_rate_bytes": 1000, "max_unsent_total_bytes": 1_000_000, **limits}
    return Readers(GatewaySettings(**options), node.recorder)


def look(found: Readers, clients: list[Client], sizes: dict[float, int]) -> float | None:
    """When the first client was closed, if its buffer has these sizes at these times."""
    for at, size in sizes.items():
        clients[0].wire.size = size
        found.sweep(clients, at)
        if clients[0].wire.aborted:
            return at
    return None


@pytest.mark.parametrize(
    ("sizes", "closed_at"),
    [
        # Nothing is read.
        (dict.fromkeys(range(100), 500000), 5),
        # Less than 1,000 bytes per second, in large steps and in small ones.
        ({at: 500_000 - 900 * at for at in range(100)}, 5),
        # Enough, with pauses.
        ({at: 500_000 - 10_000 * (at // 4) for at in range(100)}, None),
        # Everything is read at once, late.
        ({0: 500_000, 4: 500_000, 4.5: 0, 5: 500_000, 9: 500_000, 9.5: 0}, None),
    ],
)
async def test_a_client_reads_at_a_rate(node: FakeNode, sizes: dict[float, int], closed_at: float | None) -> None:
    assert look(readers(node), [Client(Wire(0))], sizes) == closed_at


async def test_a_client_that_stops_is_closed_however_much_it_has_read(node: FakeNode) -> None:
    sizes = {at: 900_000 - 100_000 * min(at, 8) for at in range(100)}
    assert look(readers(node), [Client(Wire(0))], sizes) == 38
    assert look(readers(node, write_timeout_s=0.0, min_read_rate_bytes=0), [Client(Wire(0))], sizes) is None


async def test_a_stream_that_is_being_written_is_not_judged(node: FakeNode) -> None:
    """The size of its buffer says nothing while the gateway adds to it."""
    client = Client(Wire(50_000), _paused=False, _current_request=object())
    assert look(readers(node), [client], dict.fromkeys(range(100), 50000)) is None
    client._current_request = None
    assert look(readers(node), [client], dict.fromkeys(range(100, 200), 50000)) == 105


async def test_all_together_are_bounded(node: FakeNode) -> None:
    """Those that have read nothing for the longest time are closed, no more than needed."""
    found = readers(node)
    clients = [Client(Wire(300_000)) for _ in range(3)]
    for at, client in enumerate(clients):
        found.sweep([client], at)
    found.sweep(clients, 3)
    assert not any(client.wire.aborted for client in clients)
    clients.append(Client(Wire(300_000)))
    assert found.filled(300_000)
    found.sweep(clients, 4)
    assert [client.wire.aborted for client in clients] == [True, False, False, False]
    assert found.unsent == 900_000
    assert node.recorder.counter("http_limits_exceeded", limit="max_unsent_total").value == 1


class TestOnASocket:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        limits = msgspec.structs.replace(settings.gateway, write_timeout_s=0.4, header_timeout_s=0.4)
        return msgspec.structs.replace(settings, gateway=limits)

    async def test_a_client_that_does_not_read_is_closed(self, front: Front) -> None:
        """Its call has long been answered; the memory of the answer is given back."""

        async def large() -> bytes:
            return LARGE

        front.node.serve("shop", [RouteRecord("GET", "/large", "large")], large=large)
        _, writer = await front.raw(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        counted = front.node.recorder.counter("http_limits_exceeded", limit="write_timeout")
        await eventually(lambda: counted.value == 1, "it is closed")
        await eventually(lambda: not front.server.connections, "nothing is left of it")

    async def test_small_answers_wait_for_the_client_too(self, front: Front) -> None:
        """A client that sends many requests and reads nothing does not fill the memory."""

        async def page() -> bytes:
            return bytes(50_000)

        front.node.serve("shop", [RouteRecord("GET", "/page", "page")], page=page)
        _, writer = await front.raw()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
        [connection] = front.server.connections
        most = 0

        def closed() -> bool:
            nonlocal most
            most = max(most, connection.wire.get_write_buffer_size())  # type: ignore[attr-defined]
            return not front.server.connections

        await eventually(closed, "it is closed")
        assert most < 200_000
        assert len(front.node.calls) < 500

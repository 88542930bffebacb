"""The transport contract: where listeners may be, and what becomes of those that were there before."""

from __future__ import annotations

import re
import socket
import stat
from pathlib import Path

import pytest

from mesh.errors import AddressInUse, BadEndpoint


async def test_a_live_endpoint_is_never_stolen(bench):
    """A second listener is refused, from the same transport and from another; the first goes on."""
    server = await bench.listen(on_receive=lambda s, frames: s.send(frames))
    client = bench.dial(server.endpoint)
    client.send([b"one"])
    await client.until_received(1)
    for transport in (bench.far, bench.near):
        with pytest.raises(AddressInUse, match=re.escape(server.endpoint.partition("?")[0])):
            await bench.listen(server.endpoint, on=transport)
        with pytest.raises(AddressInUse):
            transport.subscriber(server.endpoint, lambda _topic, _frame: None)
    late = bench.dial(server.endpoint)
    for session in (client, late):
        session.send([b"two"])
    await client.until_received(2)
    await late.until_received(1)


async def test_another_process_s_endpoint_is_never_stolen(bench):
    """A listener in another process is safe as well."""
    peer = await bench.echo_process()
    with pytest.raises(AddressInUse):
        await bench.listen(peer.endpoint)
    client = bench.dial(peer.endpoint)
    client.send([b"alive"])
    await client.until_received(1)


async def test_the_endpoint_of_a_killed_process_is_taken_over(bench):
    """kill -9 leaves a stale socket at most; the next listener cleans and takes it."""
    peer = await bench.echo_process()
    await peer.vanish()
    server = await bench.listen(peer.endpoint)
    client = bench.dial(server.endpoint)
    client.send([b"hello"])
    await (await server.next()).until_received(1)


async def test_a_stale_socket_file_is_taken_over(bench):
    """A socket that nobody listens on does not stand in the way."""
    bench.only(bench.ipc, "has no socket files")
    endpoint = bench.far.endpoint("stale")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(endpoint.removeprefix("ipc://"))
        stale.listen()
    server = await bench.listen(endpoint)
    client = bench.dial(endpoint)
    client.send([b"hello"])
    await (await server.next()).until_received(1)


async def test_the_run_directory_is_private(bench):
    """Sockets lie where no other user can reach them."""
    bench.only(bench.ipc, "has no socket files")
    server = await bench.listen()
    path = Path(server.endpoint.removeprefix("ipc://"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_an_ipc_path_that_is_too_long_is_refused(bench):
    """The error says the limit and the mend, for listening, dialling and subscribing."""
    bench.only(bench.ipc, "has no paths")
    endpoint = f"ipc://{bench.run_dir}/{'x' * 100}.sock"
    with pytest.raises(BadEndpoint, match=r"107.*mesh\.run_dir"):
        await bench.listen(endpoint)
    with pytest.raises(BadEndpoint, match=r"107.*mesh\.run_dir"):
        bench.dial(endpoint)
    with pytest.raises(BadEndpoint, match=r"107.*mesh\.run_dir"):
        bench.far.subscriber(endpoint, lambda _topic, _frame: None)


@pytest.mark.parametrize(
    "endpoint", ["", "nonsense", "ipc://", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "udp://x:1"]
)
async def test_a_malformed_endpoint_is_refused(bench, endpoint):
    """The error comes at once, and no session is made."""
    with pytest.raises(BadEndpoint):
        await bench.listen(endpoint or "://")
    with pytest.raises(BadEndpoint):
        bench.dial(endpoint)
    with pytest.raises(BadEndpoint):
        bench.near.publisher().connect(endpoint)
    assert bench.sessions == []


async def test_a_free_tcp_port_is_filled_in(bench):
    """`tcp://…:*` binds, and the listener says where; the same for a subscriber."""
    bench.only(bench.kind == "zmq-tcp", "has no ports")
    server = await bench.listen("tcp://127.0.0.1:*")
    subscriber = bench.far.subscriber("tcp://127.0.0.1:*", lambda _topic, _frame: None)
    for endpoint in (server.endpoint, subscriber.endpoint):
        assert 1 <= int(endpoint.removeprefix("tcp://127.0.0.1:")) <= 65535
    client = bench.dial(server.endpoint)
    client.send([b"hello"])
    await (await server.next()).until_received(1)


async def test_endpoints_handed_out_are_fresh(bench):
    """Two endpoints for one name can both be listened on."""
    servers = [await bench.listen(bench.far.endpoint("w-1")) for _ in range(2)]
    assert servers[0].endpoint != servers[1].endpoint

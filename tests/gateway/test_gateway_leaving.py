"""Starting and leaving: real processes, real signals, clients that must notice nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from gateway_front import Front, eventually
from gateway_served import served
from gateway_shop import open_shop

from mesh.config import GatewaySettings, Settings
from mesh.errors import AddressInUse, ConfigError, SetupError
from mesh.gateway import app
from mesh.testing import Mesh

SCRIPT = Path(__file__).with_name("gateway_process.py")
Start = Callable[..., Awaitable["Process"]]


class Process:
    def __init__(self, child: asyncio.subprocess.Process, address: str) -> None:
        self.child = child
        self.url = address
        self.port = int(address.rpartition(":")[2])
        self.opened: list[asyncio.StreamWriter] = []

    async def ends(self) -> int:
        async with asyncio.timeout(10):
            return await self.child.wait()

    async def refuses(self) -> None:
        """Return once nobody is accepted any more."""
        async with asyncio.timeout(10):
            while True:
                try:
                    await self.connect()
                except OSError:
                    return
                await asyncio.sleep(0.01)

    async def connect(self, data: bytes = b"") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(writer)
        writer.write(data)
        return reader


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a gateway process; it is killed at the end if it still lives."""
    children: list[asyncio.subprocess.Process] = []
    processes: list[Process] = []

    async def begin(listener: socket.socket | None = None, **env: str) -> Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SCRIPT),
            *([] if listener is None else ["0"]),
            stdin=asyncio.subprocess.DEVNULL if listener is None else listener,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **env},
        )
        children.append(child)
        assert child.stdout is not None
        async with asyncio.timeout(20):
            address = (await child.stdout.readline()).decode().strip()
        assert address, "the gateway did not start"
        processes.append(Process(child, address))
        return processes[-1]

    yield begin
    for process in processes:
        for writer in process.opened:
            writer.close()
    for child in children:
        if child.returncode is None:
            child.kill()
            await child.wait()
        child._transport.close()  # type: ignore[attr-defined]


GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"
LINES = b"GET %b HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n"


async def test_sigterm_answers_what_is_in_hand_and_leaves_with_0(start: Start) -> None:
    """The request that is being worked on gets its answer, with Connection: close; nobody new is accepted."""
    gateway = await start()
    reader = await gateway.connect(GET % b"/sleeps?seconds=0.4")
    idle_reader = await gateway.connect(GET % b"/livez")
    await idle_reader.readuntil(b"live\n")
    gateway.child.send_signal(signal.SIGTERM)

    await gateway.refuses()
    told = await reader.read()
    assert told.startswith(b"HTTP/1.1 200")
    assert b"Connection: close" in told
    # Idle, and closed without a word, but not reset.
    assert await idle_reader.read() == b""
    assert await gateway.ends() == 0


async def test_what_does_not_end_in_time_is_told_so(start: Start) -> None:
    """A call is answered 503, a stream gets a last event; the process leaves all the same."""
    gateway = await start(DRAIN="0.2")
    call = await gateway.connect(GET % b"/sleeps")
    stream = await gateway.connect(GET % b"/count/1000000?gap=0.01")
    await stream.readuntil(b"data: 1\n")
    lines = await gateway.connect(LINES % b"/count/1000000?gap=0.01")
    await lines.readuntil(b"\n1\n")
    gateway.child.send_signal(signal.SIGTERM)
    told = await call.read()
    assert told.startswith(b"HTTP/1.1 503")
    assert b'"code":"draining"' in told
    # An EventSource is told to connect again; a reader of lines, that the stream was cut.
    assert (await stream.read()).endswith(b"retry: 1000\n\n\r\n0\r\n\r\n")
    assert b'{"error":{' in await lines.read()
    assert await gateway.ends() == 0


async def test_an_open_event_source_does_not_hold_a_release_up(start: Start) -> None:
    """It is ended long before the drain is over, with a hint and no error; one that ends by itself is left alone."""
    gateway = await start(DRAIN="60")
    endless = await gateway.connect(GET % b"/count/1000000?gap=0.01")
    short = await gateway.connect(GET % b"/count/30?gap=0.01")
    await endless.readuntil(b"data: 1\n")
    gateway.child.send_signal(signal.SIGTERM)
    assert (await short.read()).endswith(b"id: mesh-end\nevent: end\ndata: {}\n\n\r\n0\r\n\r\n")
    told = await endless.read()
    assert told.endswith(b"retry: 1000\n\n\r\n0\r\n\r\n")
    assert b"event: error" not in told
    assert await gateway.ends() == 0


async def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    """Whatever is in hand."""
    gateway = await start(DRAIN="60")
    await gateway.connect(GET % b"/sleeps")
    reader = await gateway.connect(GET % b"/livez")
    await reader.readuntil(b"live\n")
    gateway.child.send_signal(signal.SIGTERM)
    await gateway.refuses()
    gateway.child.send_signal(signal.SIGTERM)
    assert await gateway.ends() == 1


async def test_two_gateways_on_one_socket_are_restarted_unnoticed(start: Start) -> None:
    """The listening socket belongs to the parent, as under supervisor: clients see answers and nothing else."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        first, second = await start(listener), await start(listener)
        stop = asyncio.Event()
        answers = 0

        async def client(*, keep_alive: bool) -> None:
            nonlocal answers
            headers = {"Content-Type": "application/json"}
            connector = aiohttp.TCPConnector(limit=1, force_close=not keep_alive)
            async with aiohttp.ClientSession(connector=connector) as session:
                while not stop.is_set():
                    # POST: aiohttp's client does not quietly repeat it when a connection breaks.
                    async with session.post(f"{first.url}/rpc/shop/hello", data=b'["x"]', headers=headers) as told:
                        assert told.status == 200
                        assert await told.json() == "Hello, x!"
                    answers += 1

        clients = [asyncio.ensure_future(client(keep_alive=number % 2 == 0)) for number in range(8)]
        for gateway in (first, second):
            before = answers
            await eventually(lambda before=before: answers > before + 200, "clients are served")
            fresh = await start(listener)
            gateway.child.send_signal(signal.SIGTERM)
            assert await gateway.ends() == 0
            assert fresh.url == gateway.url
        before = answers
        await eventually(lambda: answers > before + 200, "clients are still served")
        stop.set()
        await asyncio.gather(*clients)


async def test_a_request_that_is_already_in_the_kernel_is_answered(front: Front) -> None:
    """Closing idle connections spares the one whose request has come but has not been read."""
    open_shop(front.node)
    quiet, _ = await front.raw(GET % b"/hello/a")
    asking, writer = await front.raw(GET % b"/hello/b")
    await quiet.readuntil(b'a!"')
    await asking.readuntil(b'b!"')
    front.gateway.health.draining = True
    # Sent by hand, so that the gateway's loop has had no turn since.
    os.write(writer.get_extra_info("socket").fileno(), GET % b"/hello/c")
    await front.gateway.connections.close_idle(front.server)
    assert (await asking.read()).endswith(b'"Hello, c!"')
    assert await quiet.read() == b""
    await eventually(lambda: not front.server.connections, "all are closed")


@pytest.mark.parametrize("turns", range(10))
async def test_a_connection_that_is_just_being_accepted_is_answered(turns: int) -> None:
    """Whichever turn of the loop it comes in while the gateway begins to drain, without another connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with Mesh(transport="ipc") as m, served(m, os.dup(listener.fileno())) as web:
            web.drain()
            for _ in range(turns):
                await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            try:
                await asyncio.sleep(0.1)
                try:
                    listener.accept()[0].close()
                except BlockingIOError:
                    writer.write(GET % b"/livez")
                    assert b"Connection: close" in await reader.read()
            finally:
                writer.close()


async def test_a_stream_that_promised_to_keep_its_connection_does(front: Front) -> None:
    """It began before the gateway drained; the client's next request is answered, and ends the connection."""
    open_shop(front.node)
    reader, writer = await front.raw(GET % b"/count/2?gap=0.2")
    assert b"Connection: close" not in await reader.readuntil(b"\r\n\r\n")
    connections = front.gateway.connections
    front.gateway.health.draining = True
    await reader.readuntil(b"\r\n0\r\n\r\n")
    await eventually(lambda: not connections.busy, "the gateway has ended it, too")
    # It has been idle for less than the time that draining allows.
    assert await connections.close_idle(front.server, now=10.0, idle_s=0.5) == 1
    assert await connections.close_idle(front.server, now=10.4, idle_s=0.5) == 1
    writer.write(GET % b"/hello/c")
    told = await reader.read()
    assert b"Connection: close" in told
    assert told.endswith(b'"Hello, c!"')


async def test_a_connection_that_stays_idle_while_draining_is_closed(front: Front) -> None:
    """After its own time, not that of the gateway's drain."""
    open_shop(front.node)
    reader, _ = await front.raw(GET % b"/hello/a")
    await reader.readuntil(b'a!"')
    connections = front.gateway.connections
    front.gateway.health.draining = True
    assert await connections.close_idle(front.server, now=10.0, idle_s=0.5) == 1
    await connections.close_idle(front.server, now=10.5, idle_s=0.5)
    assert await reader.read() == b""
    await eventually(lambda: not front.server.connections, "it is closed")


async def test_a_port_that_is_taken_is_named(settings: Settings) -> None:
    """With what to do about it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=rf"127\.0\.0\.1:{port}.*MESH_GATEWAY_PORT"):
            await app.serve(settings, port=port)


async def test_an_address_of_another_machine_is_named(settings: Settings) -> None:
    """192.0.2.0/24 is nobody's."""
    with pytest.raises(ConfigError, match=r"gateway\.host.*192\.0\.2\.1"):
        await app.serve(Settings(gateway=GatewaySettings(host="192.0.2.1")), port=0)


async def test_a_descriptor_that_does_not_listen_is_refused(settings: Settings, tmp_path: Path) -> None:
    """A file, or a socket that is no listener."""
    with (tmp_path / "x").open("w") as file, pytest.raises(SetupError, match="descriptor "):
        await app.serve(settings, fd=file.fileno())
    with socket.socket() as plain, pytest.raises(SetupError, match="descriptor "):
        await app.serve(settings, fd=plain.fileno())

"""Releases: replicas that share listeners come and go, and clients notice nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from listener_set import Authority, ask_on, free_port

from mesh.gateway.listeners.sockets import bind

SCRIPT = Path(__file__).with_name("listeners_process.py")
Start = Callable[[], Awaitable[asyncio.subprocess.Process]]

#: The processes are the same on either loop of the test.
pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


class Site:
    """A mesh.toml, the socket that supervisor would hold, and the gateways that have it."""

    def __init__(self, root: Path, authority: Authority) -> None:
        self.root = root
        self.public = bind("127.0.0.1", 0)
        self.admin, self.redirect = free_port(), free_port()
        authority.write(root / "site.crt", root / "site.key", "localhost")
        (root / "mesh.toml").write_text(
            f'[mesh]\nrun_dir = "run"\n[gateway]\nadmin = "127.0.0.1:{self.admin}"\ndrain = "5s"\n'
            f'[gateway.tls]\ncertificate = "site.crt"\nkey = "site.key"\nredirect_port = {self.redirect}\n'
        )
        self.client = authority.client()
        self.children: list[asyncio.subprocess.Process] = []

    @property
    def port(self) -> int:
        return int(self.public.getsockname()[1])

    async def start(self) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SCRIPT),
            str(self.root / "mesh.toml"),
            "0",
            stdin=self.public,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.children.append(child)
        assert child.stdout is not None
        async with asyncio.timeout(20):
            address = (await child.stdout.readline()).decode().strip()
        assert address == f"https://127.0.0.1:{self.port}", await child.stderr.read() if child.stderr else ""
        return child

    async def connect(self, port: int, tls: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        how: dict[str, object] = {"ssl": self.client, "server_hostname": "localhost"} if tls else {}
        return await asyncio.open_connection("127.0.0.1", port, **how)  # type: ignore[arg-type]


@pytest.fixture
async def site(tmp_path: Path, authority: Authority) -> AsyncIterator[Site]:
    site = Site(tmp_path, authority)
    yield site
    for child in site.children:
        if child.returncode is None:
            child.kill()
        await child.communicate()
    site.public.close()


async def leave(child: asyncio.subprocess.Process) -> None:
    child.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await child.wait() == 0


async def test_a_request_over_tls_in_progress_is_answered_and_idle_connections_end(site: Site):
    child = await site.start()
    idle_reader, idle_writer = await site.connect(site.port, tls=True)
    await ask_on(idle_reader, idle_writer, "GET /livez")
    reader, writer = await site.connect(site.port, tls=True)
    asked = asyncio.create_task(ask_on(reader, writer, "GET /sleeps?seconds=0.4"))
    await asyncio.sleep(0.1)
    await leave(child)
    answer = await asked
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    # Ended with close_notify, not by a reset.
    assert await idle_reader.read() == b""
    writer.close()
    idle_writer.close()


async def test_a_rolling_release_loses_no_request(site: Site):
    """Clients with kept and with new connections, over TLS and on the shared admin and redirect listeners."""
    told: Counter[str] = Counter()
    over = asyncio.Event()

    async def keeps(port: int, tls: bool, request: str) -> None:
        reader, writer = await site.connect(port, tls)
        while not over.is_set():
            answer = await ask_on(reader, writer, request)
            told[f"{request} {answer.status}"] += 1
            if answer.headers.get("connection") == "close":
                writer.close()
                reader, writer = await site.connect(port, tls)
        writer.close()

    async def opens(port: int, tls: bool, request: str) -> None:
        while not over.is_set():
            reader, writer = await site.connect(port, tls)
            told[f"{request} {(await ask_on(reader, writer, request)).status}"] += 1
            writer.close()

    first, second = await site.start(), await site.start()
    clients = [
        asyncio.create_task(each)
        for each in (
            keeps(site.port, True, "GET /search"),
            keeps(site.port, True, "GET /search"),
            opens(site.port, True, "GET /search?q=a"),
            opens(site.port, True, "GET /search?q=a"),
            keeps(site.admin, False, "GET /mesh"),
            opens(site.admin, False, "GET /livez"),
            opens(site.redirect, False, "GET /a"),
            opens(site.redirect, False, "GET /a"),
        )
    ]
    try:
        for leaving in (first, second):
            await leave(leaving)
            await site.start()
    finally:
        over.set()
        failures = [each for each in await asyncio.gather(*clients, return_exceptions=True) if each is not None]
    assert failures == []
    assert set(told) == {"GET /search 200", "GET /search?q=a 200", "GET /mesh 200", "GET /livez 200", "GET /a 308"}
    assert min(told.values()) > 20


async def test_replicas_have_the_same_sockets_and_the_last_leaves_nothing(site: Site):
    first, second = await site.start(), await site.start()
    run = site.root / "run"
    assert len(list(run.glob("gateway-*.fds"))) == 2
    inodes = [_listening(child.pid) for child in (first, second)]
    assert inodes[0] == inodes[1]
    assert len(inodes[0]) == 3
    await leave(first)
    # The other one goes on with them.
    for port in (site.admin, site.redirect):
        reader, writer = await site.connect(port, tls=False)
        assert (await ask_on(reader, writer, "GET /livez")).status in (200, 308)
        writer.close()
    await leave(second)
    assert list(run.glob("gateway-*.fds")) == []
    with pytest.raises(ConnectionRefusedError):
        await site.connect(site.admin, tls=False)


async def test_what_a_killed_gateway_has_left_does_not_stop_the_next_one(site: Site):
    first = await site.start()
    first.kill()
    await first.wait()
    assert len(list((site.root / "run").glob("gateway-*.fds"))) == 1
    second = await site.start()
    assert [path.name for path in (site.root / "run").glob("gateway-*.fds")] == [f"gateway-{second.pid}.fds"]
    await leave(second)


async def test_a_shared_listener_whose_address_another_program_has_is_named(site: Site):
    taken = bind("127.0.0.1", site.admin)
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SCRIPT),
            str(site.root / "mesh.toml"),
            "0",
            stdin=site.public,
            stderr=asyncio.subprocess.PIPE,
        )
        site.children.append(child)
        assert child.stderr is not None
        async with asyncio.timeout(20):
            told = (await child.stderr.read()).decode()
        assert await child.wait() != 0
        assert f"AddressInUse: 127.0.0.1:{site.admin}" in told
        assert "gateway.admin" in told
    finally:
        taken.close()


def _listening(pid: int) -> set[str]:
    """The inodes of the listening TCP sockets of a process."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {line[9] for line in lines if line[3] == "0A"}
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{fd}")
        if target.startswith("socket:[") and target[8:-1] in listening:
            found.add(target[8:-1])
    return found

"""The bench on which every transport is held to the contract: sessions that record, listeners, peers in processes."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import resource
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_kinds import pytest_generate_tests, rig  # noqa: F401  # of the engines' suites: pytest looks for them here

from mesh.transport import endpoints
from mesh.transport.contract import Channel, Listener, Transport
from mesh.transport.memory import MemoryNetwork, MemoryTransport

KINDS = ("memory", "zmq-ipc", "zmq-tcp", "zmq-curve")

#: Keys of the transports that a bench makes, and of the processes that it starts.
NAMES = tuple(f"process-{number}" for number in range(1, 9))
MODES = ("listen", "dial", "stall")

#: Nothing here takes a second on an idle machine; this only turns a hang into a failure.
PATIENCE_S = 20.0

PEER = Path(__file__).with_name("transport_peer.py")


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Return once `condition()` is true; fail with `what` when patience ends."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.002)
    except TimeoutError:
        pytest.fail(f"never happened: {what}")


class Recorder:
    """A session that writes down what is asked of it, and whose steps a test can hook."""

    def __init__(
        self,
        channel: Channel,
        *,
        on_opened: Callable[[Recorder], object] | None = None,
        on_receive: Callable[[Recorder, list[Any]], object] | None = None,
    ) -> None:
        self.channel = channel
        self.calls: list[str] = []
        self.received: list[list[Any]] = []
        self.reasons: list[str] = []
        self.fetches = 0
        self._out: list[list[Any]] = []
        self._on_opened = on_opened
        self._on_receive = on_receive
        self._news = asyncio.Event()

    def send(self, *messages: list[Any]) -> None:
        self._out.extend(messages)
        self.channel.wake()

    # --- what the transport calls

    def opened(self) -> None:
        self._note("opened")
        if self._on_opened:
            self._on_opened(self)

    def receive(self, frames: list[Any]) -> None:
        self._note("receive")
        self.received.append(frames)
        if self._on_receive:
            self._on_receive(self, frames)

    def data_to_send(self) -> list[list[Any]]:
        self._note("data_to_send")
        self.fetches += 1
        out, self._out = self._out, []
        return out

    def lost(self, reason: str) -> None:
        self._note("lost")
        self.reasons.append(reason)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._news.set()

    # --- what a test waits for

    @property
    def is_open(self) -> bool:
        return "opened" in self.calls and "lost" not in self.calls

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            shown = self.calls if len(self.calls) < 10 else [*self.calls[:3], "…", *self.calls[-3:]]
            pytest.fail(f"{what} never came; calls: {shown}, received {len(self.received)}, lost {self.reasons}")

    async def until_opened(self) -> None:
        await self._until(lambda: "opened" in self.calls, "opened")

    async def until_received(self, count: int) -> list[list[bytes]]:
        await self._until(lambda: len(self.received) >= count, f"{count} messages")
        return self.messages

    async def until_lost(self) -> str:
        await self._until(lambda: bool(self.reasons), "lost")
        return self.reasons[0]

    @property
    def messages(self) -> list[list[bytes]]:
        return [[bytes(frame) for frame in frames] for frames in self.received]

    def check(self, *, over: bool) -> None:
        """What holds for every session in every test."""
        calls = self.calls
        assert calls.count("opened") <= 1, "opened twice"
        assert calls.count("lost") <= 1, "lost twice"
        if "lost" in calls:
            assert calls[-1] == "lost", f"{calls[-1]} after lost"
            assert self.reasons[0], "lost without a reason"
        elif over:
            pytest.fail("the transport was closed and the session never told lost")
        if "receive" in calls:
            assert "opened" in calls, "received before opened"
            assert calls.index("opened") < calls.index("receive"), "received before opened"


class Server:
    """A listener and the sessions that it made."""

    def __init__(self) -> None:
        self.listener: Listener
        self.sessions: list[Recorder] = []
        self._handed = 0

    @property
    def endpoint(self) -> str:
        return self.listener.endpoint

    async def next(self) -> Recorder:
        """The session for the next dialler, in the order of their coming."""
        self._handed += 1
        await eventually(lambda: len(self.sessions) >= self._handed, "a dialler at the listener")
        return self.sessions[self._handed - 1]


class Peer:
    """Another process that listens or dials, in whatever way this kind of transport has processes."""

    def __init__(self, endpoint: str, vanish: Callable[[], Awaitable[object]]) -> None:
        self.endpoint = endpoint
        #: End it as kill -9 does.
        self.vanish = vanish


class Bench:
    """Transports of one kind. `near` and `far` play two processes."""

    def __init__(self, kind: str, run_dir: Path, keys: Path | None) -> None:
        self.kind = kind
        self.run_dir = run_dir
        self.keys = keys
        self.eventually = eventually
        self.sessions: list[Recorder] = []
        self._network = MemoryNetwork()
        self._transports: list[Transport] = []
        self._processes: list[asyncio.subprocess.Process] = []
        self._held: list[socket.socket] = []
        self._names = itertools.count(1)
        self._keys = iter(NAMES)
        self.near = self.transport()
        self.far = self.transport()

    @property
    def memory(self) -> bool:
        return self.kind == "memory"

    @property
    def ipc(self) -> bool:
        return "ipc" in self.kind

    def only(self, fact: bool, why: str) -> None:
        """Skip where the kind of transport has nothing of what is tested."""
        if not fact:
            pytest.skip(f"{self.kind}: {why}")

    def transport(self) -> Transport:
        made: Transport
        if self.memory:
            made = MemoryTransport(self._network)
        else:
            from mesh.transport.zmq_transport import ZmqTransport

            bind = "ipc" if self.ipc else "tcp://127.0.0.1:*"
            made = ZmqTransport(self.run_dir, bind=bind, ring=self._ring())
        self._transports.append(made)
        return made

    def _ring(self) -> Any:
        """Every transport of one mesh holds a key of its own and knows the others'; None where links have no keys."""
        if self.keys is None:
            return None
        from mesh.transport.curve import key_files, key_ring

        return key_ring.Keyring(self.keys, key_files.read_secret(self.keys, next(self._keys)))

    async def listen(self, endpoint: str | None = None, *, on: Transport | None = None, **hooks: Any) -> Server:
        """A listener of `far`, whose sessions have the given hooks."""
        on = on or self.far
        server = Server()
        server.listener = await on.listen(endpoint or on.endpoint("listener"), self._maker(server.sessions, hooks))
        return server

    def dial(self, endpoint: str, *, on: Transport | None = None, **hooks: Any) -> Recorder:
        """A connection from `near`."""
        made: list[Recorder] = []
        (on or self.near).dial(endpoint, self._maker(made, hooks))
        return made[0]

    def absent_endpoint(self) -> str:
        """Where nobody listens, and nobody else can meanwhile."""
        if self.memory or self.ipc:
            return self.far.endpoint("absent")
        held = socket.socket()
        self._held.append(held)
        held.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{held.getsockname()[1]}"

    async def pair(self, **hooks: Any) -> tuple[Recorder, Recorder]:
        """(dialling, accepting) sessions of one connection that stands; `hooks` are the accepting side's."""
        server = await self.listen(**hooks)
        client = self.dial(server.endpoint)
        # Whether a bare connection is seen by the other side before a message comes is the transport's own affair.
        client.send([b"first"])
        accepted = await server.next()
        await client.until_opened()
        await accepted.until_received(1)
        accepted.received.clear()
        return client, accepted

    def _maker(self, into: list[Recorder], hooks: dict[str, Any]) -> Callable[[Channel], Recorder]:
        def make(channel: Channel) -> Recorder:
            session = Recorder(channel, **hooks)
            into.append(session)
            self.sessions.append(session)
            return session

        return make

    # --- other processes

    async def echo_process(self, endpoint: str | None = None) -> Peer:
        """Another process that listens and echoes."""
        endpoint = endpoint or self.far.endpoint("echo")
        if self.memory:
            other = self.transport()
            await other.listen(endpoint, self._maker([], {"on_receive": lambda s, frames: s.send(frames)}))
            return Peer(endpoint, self._killer(other))
        process, line = await self._spawn("listen", endpoint)
        return Peer(line, self._reaper(process))

    async def dialling_process(self, endpoint: str, *, stalled: bool = False) -> Peer:
        """Another process that dials `endpoint`; a stalled one reads nothing any more, and stays."""
        if self.memory:
            other = self.transport()
            session = self.dial(endpoint, on=other, on_opened=lambda s: s.send([b"hello"]))
            await session.until_opened()
            if stalled:
                await eventually(lambda: session.fetches, "the hello")
                self._network.partition(other)  # type: ignore[arg-type]
            return Peer(endpoint, self._killer(other))
        process, _ = await self._spawn("stall" if stalled else "dial", endpoint)
        return Peer(endpoint, self._reaper(process))

    def _killer(self, transport: Transport) -> Callable[[], Awaitable[object]]:
        async def vanish() -> None:
            self._network.kill(transport)  # type: ignore[arg-type]

        return vanish

    def _reaper(self, process: asyncio.subprocess.Process) -> Callable[[], Awaitable[object]]:
        async def vanish() -> None:
            process.kill()
            await process.wait()

        return vanish

    async def _spawn(self, mode: str, endpoint: str) -> tuple[asyncio.subprocess.Process, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PEER),
            mode,
            "ipc" if self.ipc else "tcp",
            str(self.run_dir),
            endpoint,
            *([] if self.keys is None else [str(self.keys)]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._processes.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = (await process.stdout.readline()).decode().strip()
        assert line, "the other process ended before it stood"
        return process, line

    async def close(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            # Reads what is left and closes the pipes, so that no transport outlives the loop.
            await process.communicate()
        for transport in self._transports:
            await transport.close()
        for held in self._held:
            held.close()

    def check(self) -> None:
        """What holds after every test."""
        for session in self.sessions:
            session.check(over=True)
        left = [path.name for path in self.run_dir.iterdir()]
        # A killed process cannot clean up after itself; the sweep does it.
        if any(process.returncode == -9 for process in self._processes):
            endpoints.sweep(self.run_dir)
            left = [path.name for path in self.run_dir.iterdir()]
        assert not left, f"files left behind: {left}"


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test here runs on asyncio's own loop and, where it is installed, on uvloop."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name.startswith("zmq") and importlib.util.find_spec("mesh.transport.zmq_transport") is None:
        pytest.skip("mesh.transport.zmq_transport is not there")
    return name


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for socket names (tmp_path's may not)."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as made:
        yield Path(made)


@pytest.fixture(scope="session")
def keys() -> Iterator[Path]:
    """A directory with the keys of everybody."""
    from mesh.transport.curve import key_store

    with tempfile.TemporaryDirectory(prefix="mesh-keys-") as made:
        for name in (*NAMES, *MODES):
            key_store.make(Path(made), name)
        yield Path(made)


@pytest.fixture
async def bench(kind: str, short_dir: Path, keys: Path) -> AsyncIterator[Bench]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bench = Bench(kind, short_dir, keys if kind == "zmq-curve" else None)
    try:
        yield bench
    finally:
        await bench.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    bench.check()

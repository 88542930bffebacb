"""The parts of mesh that the gateway needs, as Protocols.

Owns: the interfaces of a Node, its table and its recorder for a gateway.
Leaves to others: implementing them (node.node, discovery, telemetry, or a test's fakes).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from mesh.calls.interceptors import Hook, Point
from mesh.clock import Clock
from mesh.discovery.record import Instance
from mesh.tasks.contract import JobInfo
from mesh.tasks.deferring import Options
from mesh.tasks.engine import Jobs

Buffer = bytes | bytearray | memoryview


class Answer(Protocol):
    """The answer of a call: a body, its encoding (protocol.messages), and the callee's metadata."""

    @property
    def body(self) -> Buffer: ...

    @property
    def encoding(self) -> int: ...

    @property
    def meta(self) -> Mapping[str, str] | None: ...


class Items(Protocol):
    """An open stream: an asynchronous iterator of answers that can be cancelled."""

    def __aiter__(self) -> AsyncIterator[Answer]: ...

    async def __anext__(self) -> Answer: ...

    async def aclose(self) -> None:
        """Cancel the rest of the stream at the callee; no effect when it has ended."""


class Change(Protocol):
    """A change of a table."""

    @property
    def joined(self) -> Sequence[Instance]: ...

    @property
    def left(self) -> Sequence[tuple[Instance, str]]: ...

    @property
    def updated(self) -> Sequence[Instance]: ...

    @property
    def only_loads(self) -> bool: ...


class Table(Protocol):
    """The registered instances that this process knows."""

    def services(self) -> Iterable[str]: ...

    def instances(self, service: str) -> Sequence[Instance]: ...

    @property
    def certain(self) -> bool:
        """Whether a connected hub has a complete registry: only then is a missing instance known not to run."""


class Agent(Protocol):
    """This process's connection to the hubs."""

    @property
    def synced(self) -> bool:
        """Whether at least one hub has sent its registry, now or earlier."""

    @property
    def hearing(self) -> bool:
        """Whether at least one hub is currently sending changes."""

    def register(self, *records: Instance) -> None:
        """Make instances known to every hub."""

    def on_change(self, callback: Callable[[Any], None], /) -> object: ...

    def hubs_status(self) -> Iterable[Any]: ...


class MethodStats(Protocol):
    """Counters of one method; `begin` and `end` are called for each request."""

    def begin(self) -> None: ...

    def end(self, seconds: float, code: str = "", /) -> None: ...


class Counter(Protocol):
    """A number that only grows; there is one object for each combination of labels."""

    value: float

    def add(self, by: float = 1) -> None: ...


class Recorder(Protocol):
    """This process's counters."""

    def method(self, side: Any, service: str, method: str, /) -> MethodStats: ...

    def counter(self, name: str, /, help: str = "", **labels: str) -> Counter: ...

    def count(self, name: str, by: float = 1, /, **labels: str) -> None: ...

    def total(self, name: str, fn: Callable[[], float], help: str = "", /) -> None: ...

    def gauge(self, name: str, fn: Callable[[], float], help: str = "", /) -> None: ...

    def snapshot(self) -> Mapping[str, Any]: ...


class Job(Protocol):
    """A task that was deferred."""

    @property
    def id(self) -> str: ...

    @property
    def fresh(self) -> bool: ...

    async def info(self) -> JobInfo: ...


class Durable(Protocol):
    """Access to the engines of tasks and state."""

    @property
    def jobs(self) -> Jobs: ...

    @property
    def timeout_s(self) -> float: ...

    def state(self, namespace: str) -> Any: ...

    def defer_encoded(self, task: str, body: bytes, how: Options) -> Awaitable[Job]: ...


class Interceptors(Protocol):
    """The interceptors of the process."""

    def hooks(self, point: Point, /) -> tuple[Hook, ...]:
        """Those for one point, the outermost first."""

    async def start(self, node: Any, /) -> None:
        """Run their `started`."""

    async def stop(self) -> None:
        """Run their `stopped`."""


class Node(Protocol):
    """A connection to the mesh."""

    @property
    def durable(self) -> Durable: ...

    @property
    def identity(self) -> str: ...

    @property
    def epoch(self) -> int: ...

    @property
    def table(self) -> Table: ...

    @property
    def agent(self) -> Agent: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def recorder(self) -> Recorder: ...

    @property
    def interceptors(self) -> Interceptors: ...

    async def close(self) -> None:
        """Leave the mesh. Pending calls end with an error."""

    def call(
        self, target: str, /, *args: Any, timeout: float | None = None, instance: str | None = None
    ) -> Awaitable[Any]: ...

    def call_raw(
        self,
        target: str,
        body: bytes,
        encoding: int,
        *,
        timeout: float | None = None,
        meta: dict[str, str] | None = None,
        trace: str | None = None,
        idempotent: bool | None = None,
        source: AsyncIterator[tuple[Buffer, int]] | None = None,
    ) -> Awaitable[Answer]: ...

    def stream_raw(
        self,
        target: str,
        body: bytes,
        encoding: int,
        *,
        timeout: float | None = None,
        meta: dict[str, str] | None = None,
        trace: str | None = None,
        source: AsyncIterator[tuple[Buffer, int]] | None = None,
        window: int = 0,
    ) -> Items: ...

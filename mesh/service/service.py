"""The base class of every service: what its author writes, and the verbs that stand on `self`.

Owns: names and their defaults, refusing a class that cannot work, and passing verbs on to the node.
Leaves to others: running it (worker), calls and events (node), the durable verbs (verbs), what it tells of itself
(describe).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol

from mesh.calls.declared import BadDeclaration
from mesh.discovery.record import Instance
from mesh.errors import SetupError
from mesh.service.members import check, claim
from mesh.service.verbs import DurableVerbs, Room
from mesh.telemetry.metrics import Recorder

#: Names that begin so are the framework's own processes'.
OWN: Final = "mesh-"
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class Verbs(Protocol):
    """What a service asks of the node that it runs on; see `Node` for arguments and errors."""

    @property
    def rpc(self) -> Any: ...

    @property
    def recorder(self) -> Recorder: ...

    def call(self, target: str, /, *args: Any, **kwargs: Any) -> Awaitable[Any]: ...

    def stream(self, target: str, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]: ...

    def scatter(self, target: str, /, *args: Any, **kwargs: Any) -> Awaitable[Any]: ...

    def map(
        self, target: str, items: Iterable[Any], *, timeout: float | None = None, at_once: int = 256
    ) -> Awaitable[list[Any]]: ...

    def using(
        self,
        *,
        timeout: float | None = None,
        key: str | None = None,
        instance: str | None = None,
        meta: dict[str, str] | None = None,
    ) -> Any: ...

    def instances(self, service: str) -> Sequence[Instance]: ...

    def emit(
        self,
        topic: str,
        data: Any = None,
        *,
        key: str | None = None,
        meta: dict[str, str] | None = None,
        durable: bool | None = None,
    ) -> Awaitable[None]: ...

    @property
    def _durable(self) -> Room: ...


class Service(DurableVerbs):
    """A class with a name and methods that other processes call.

    ::

        class Greeting(mesh.Service):
            \"\"\"Says hello.\"\"\"

            @rpc
            async def hello(self, name: str) -> str:
                return f"Hello, {name}!"

    Attributes:
        name: what callers use; the class name in snake_case unless given. Lower-case letters, digits, `_` and `-`.
        version: of this service, for people and pages.
        meta: small map of text that goes into the registry.
        needs: services that must be there before this one is ready.
        concurrency: how many calls may run at once in one worker; None takes the configured number.
        queue: how many more may wait; None takes the configured number.
        config: the values under `[services.<name>.config]` of mesh.toml.
        log: a logger that names the service in every line.
        node: the node of the worker that runs it.
    """

    name: ClassVar[str]
    version: ClassVar[str] = ""
    meta: ClassVar[Mapping[str, str]] = {}
    needs: ClassVar[Sequence[str]] = ()
    concurrency: ClassVar[int | None] = None
    queue: ClassVar[int | None] = None

    #: Given by the worker before `started`.
    config: Mapping[str, Any] = {}
    log: Any = None
    _node: Verbs | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A name that a base class was given is inherited; one that was made from a class name is not.
        given = next((base for base in cls.__mro__ if "name" in vars(base) and not vars(base).get("_made_name")), None)
        if given is None:
            cls.name = snake_case(cls.__name__)
        cls._made_name = given is None
        _check_attributes(cls)
        check(cls)
        claim(cls, Service)

    _made_name: ClassVar[bool] = False

    async def started(self) -> None:
        """Runs before the first call is taken. An error stops the worker."""

    def draining(self) -> None:
        """Runs when the worker begins to leave: nothing new is taken, what runs goes on. End here what would run for
        ever."""

    async def stopped(self) -> None:
        """Runs after the last call was answered."""

    @property
    def node(self) -> Verbs:
        if self._node is None:
            raise SetupError(f"{self.name} runs on no node yet: a worker or mesh.testing gives it one")
        return self._node

    @node.setter
    def node(self, node: Verbs) -> None:
        self._node = node

    @property
    def metrics(self) -> Recorder:
        """Counters and gauges on the host's Prometheus page: `self.metrics.counter("orders").add()`. docs/metrics.md"""
        return self.node.recorder

    @property
    def rpc(self) -> Any:
        """Remote calls by attribute: `await self.rpc.users.get(7)`."""
        return self.node.rpc

    def call(self, target: str, /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call "service.method"; options as for `Node.call`."""
        return self.node.call(target, *args, **kwargs)

    def stream(self, target: str, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """The items of "service.method"; options as for `Node.stream`."""
        return self.node.stream(target, *args, **kwargs)

    def scatter(self, target: str, /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Ask every instance of a service; options as for `Node.scatter`."""
        return self.node.scatter(target, *args, **kwargs)

    def map(
        self, target: str, items: Iterable[Any], *, timeout: float | None = None, at_once: int = 256
    ) -> Awaitable[list[Any]]:
        """One call for each item, shared out over the instances; the answers in order. See `Node.map`."""
        return self.node.map(target, items, timeout=timeout, at_once=at_once)

    def instances(self, service: str) -> Sequence[Instance]:
        """The instances of a service that are known now."""
        return self.node.instances(service)

    def emit(
        self,
        topic: str,
        data: Any = None,
        *,
        key: str | None = None,
        meta: dict[str, str] | None = None,
        durable: bool | None = None,
    ) -> Awaitable[None]:
        """Tell whoever listens that something happened; see `Node.emit`."""
        return self.node.emit(topic, data, key=key, meta=meta, durable=durable)

    @property
    def _durable(self) -> Room:
        return self.node._durable


def snake_case(name: str) -> str:
    """`TextStats` → `text_stats`, `HTTPProxy` → `http_proxy`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return parted.lower().strip("_")


def _check_attributes(cls: type[Service]) -> None:
    where = cls.__qualname__
    if not isinstance(cls.name, str) or not _NAME.fullmatch(cls.name):
        raise BadDeclaration(
            f"{where}: name {cls.name!r} is not a service name "
            "(a lower-case letter, then up to 62 of a-z, 0-9, _ and -)"
        )
    if cls.name.startswith(OWN) and not cls.__module__.startswith("mesh."):
        raise BadDeclaration(f"{where}: names that begin with {OWN} are the framework's own; {cls.name!r} is not free")
    if isinstance(cls.needs, str) or not all(isinstance(need, str) for need in cls.needs):
        raise BadDeclaration(f'{where}: needs is a list of service names, like needs = ["users"]')
    for need in cls.needs:
        if not _NAME.fullmatch(need):
            raise BadDeclaration(f"{where}: needs {need!r}, which is not a service name")
    if cls.name in cls.needs:
        raise BadDeclaration(f"{where}: needs itself, so that it would never be ready")
    if not all(isinstance(part, str) for pair in cls.meta.items() for part in pair):
        raise BadDeclaration(f"{where}: meta maps text to text")
    for limit, least in (("concurrency", 1), ("queue", 0)):
        value = getattr(cls, limit)
        if value is not None and (type(value) is not int or value < least):
            raise BadDeclaration(f"{where}: {limit} {value!r} is not a whole number from {least}")

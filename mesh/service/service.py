"""The base class of every service: its attributes and hooks, and the verbs available on `self`.

Owns: names and their defaults, rejecting invalid classes, creating the instance, delegating verbs to the node.
Leaves to others: running it (worker), calls and events (node), the durable verbs (verbs), its registry record
(describe).
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Protocol, Self, TypeVar, Unpack

from mesh.calls.declared import BadDeclaration
from mesh.calls.interceptors import Interceptor
from mesh.calls.interceptors import check as check_interceptors
from mesh.calls.options import CallKeywords
from mesh.discovery.record import Instance, RouteRecord
from mesh.engines.capabilities import CAPABILITIES, Capability
from mesh.errors import SetupError
from mesh.service.members import VERBS, check, claim
from mesh.service.verbs import DurableVerbs, Room
from mesh.tasks.options import Duration
from mesh.telemetry.metrics import Recorder

S = TypeVar("S", bound="Service")
Hook = Literal["started", "draining", "stopped"]

#: Prefix of names that are reserved for the framework's own processes.
OWN: Final = "mesh-"
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class Verbs(Protocol):
    """The part of a node that a service uses; see `Node` for arguments and errors."""

    @property
    def rpc(self) -> Any: ...

    @property
    def recorder(self) -> Recorder: ...

    def call(self, target: str, /, *args: Any, **kwargs: Any) -> Awaitable[Any]: ...

    def stream(self, target: str, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]: ...

    def scatter(self, target: str, /, *args: Any, **kwargs: Any) -> Awaitable[Any]: ...

    def map(
        self, target: str, items: Iterable[Any], *, timeout: Duration | None = None, at_once: int = 256
    ) -> Awaitable[list[Any]]: ...

    def using(self, **options: Unpack[CallKeywords]) -> Any: ...

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
        name: the name that callers use; the class name in snake_case unless given. Lower-case letters, digits, `_`
            and `-`.
        version: the version of this service, for display only.
        meta: a small map of strings, published in the registry.
        needs: services that must be available before this one is ready.
        concurrency: how many calls may run at once in one worker; None uses the configured number.
        queue: how many more calls may wait; None uses the configured number.
        uses: what its code uses of the engines beyond its declarations: "jobs", "flows", "state", "locks", "events",
            "atomic". A worker does not start when the engines of [engines] cannot give it.
        expose: let anyone who reaches a gateway call the methods and defer the tasks of this service, except those with
            `@rpc(expose=False)` or `@task(expose=False)`. HTTP routes do not depend on it.
        interceptors: run around the calls, streams, tasks and events of this service, and around the calls that it
            makes; inside of those of its base classes. See docs/interceptors.md.
        config: the values under `[services.<name>.config]` of mesh.toml; they override the values in the class.
        log: a logger that adds the service's name to every line.
        node: the node of the worker that runs it.
    """

    name: ClassVar[str]
    version: ClassVar[str] = ""
    meta: ClassVar[Mapping[str, str]] = {}
    needs: ClassVar[Sequence[str]] = ()
    uses: ClassVar[Sequence[Capability | Literal["atomic"]]] = ()
    concurrency: ClassVar[int | None] = None
    queue: ClassVar[int | None] = None
    expose: ClassVar[bool] = False
    interceptors: ClassVar[Sequence[Interceptor]] = ()

    #: Set by the worker before `started`.
    config: Mapping[str, Any] = {}
    log: Any = None
    _node: Verbs | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # An explicit name of a base class is inherited; a name derived from a class name is not.
        given = next((base for base in cls.__mro__ if "name" in vars(base) and not vars(base).get("_made_name")), None)
        if given is None:
            cls.name = snake_case(cls.__name__)
        cls._made_name = given is None
        _check_attributes(cls)
        _check_hooks(cls)
        check(cls)
        claim(cls, Service)

    _made_name: ClassVar[bool] = False

    @classmethod
    def _raw_routes(cls) -> Sequence[RouteRecord]:
        """The routes of requests that gateways pass on as a whole; see mesh.apps."""
        return ()

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """This class as a service with another name: `n.rpc[Orders.named("eu")]`, `Mesh(Orders.named("eu"))`.

        A section `[services.eu]` of mesh.toml with a single class runs that class under the name "eu".

        Raises:
            BadDeclaration: `name` is not a valid service name.
        """
        if name == cls.name:
            return cls
        known: dict[str, type[Self]] = cls.__dict__.get("_named") or {}
        found = known.get(name)
        if found is None:
            # Keep module and qualified name: a process of the offload pool looks the class up by them.
            own = {"name": name, "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
            found = known[name] = type(cls.__name__, (cls,), own)
            cls._named = known
        return found

    _named: ClassVar[dict[str, Any]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        # Allow a callable to replace a verb (a mock in a test); any other value would hide the verb.
        if name in VERBS and not callable(value):
            raise AttributeError(f"{type(self).__qualname__}: {_hides(f'self.{name}', name)}")
        object.__setattr__(self, name, value)

    async def started(self) -> None:
        """Runs before the first call is accepted; may be a plain `def`. An error stops the worker."""

    def draining(self) -> Awaitable[None] | None:
        """Runs when the worker begins to drain; may be an `async def`.

        No new work is accepted, and running work continues: stop endless work here. The hook has the same time limit as
        the calls in progress, `worker.stop_timeout`.
        """

    async def stopped(self) -> None:
        """Runs after the last call was answered; may be a plain `def`."""

    @property
    def node(self) -> Verbs:
        if self._node is None:
            raise SetupError(f"{self.name} has no node yet: a worker or mesh.testing provides it")
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
        """Stream the items of "service.method"; options as for `Node.stream`."""
        return self.node.stream(target, *args, **kwargs)

    def scatter(self, target: str, /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call every instance of a service; options as for `Node.scatter`."""
        return self.node.scatter(target, *args, **kwargs)

    def map(
        self, target: str, items: Iterable[Any], *, timeout: Duration | None = None, at_once: int = 256
    ) -> Awaitable[list[Any]]:
        """Make one call for each item, spread over the instances; the answers in order. See `Node.map`."""
        return self.node.map(target, items, timeout=timeout, at_once=at_once)

    def using(self, **options: Unpack[CallKeywords]) -> Any:
        """`self.rpc` with these options for each call: `await self.using(timeout="2s").users.get(7)`."""
        return self.node.using(**options)

    def instances(self, service: str) -> Sequence[Instance]:
        """The instances of a service that are currently known."""
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
        """Publish an event; see `Node.emit`."""
        return self.node.emit(topic, data, key=key, meta=meta, durable=durable)

    @property
    def _durable(self) -> Room:
        return self.node._durable


def make(cls: type[S]) -> S:
    """Create the instance that a worker runs.

    Raises:
        BadDeclaration: `__init__` takes arguments, or sets `self.config`, which the worker sets.
    """
    try:
        inspect.signature(cls).bind()
    except TypeError as exc:
        raise BadDeclaration(
            f"{cls.__qualname__}: a worker creates its instance without arguments, but __init__ has {exc}; "
            "read settings from self.config in `started`"
        ) from None
    service = cls()
    if "config" in vars(service):
        raise BadDeclaration(
            f"{cls.__qualname__}: __init__ sets self.config, which the worker replaces with "
            f"[services.{cls.name}.config] of mesh.toml. Choose another name, or give defaults in the class: "
            "config = {…}"
        )
    return service


async def run_hook(service: Service, hook: Hook) -> None:
    """Run `started`, `draining` or `stopped` of the class, `async def` or plain `def`.

    Instance attributes of the same name are ignored.
    """
    try:
        told = getattr(type(service), hook)(service)
        if inspect.isawaitable(told):
            await told
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise SetupError(f"{type(service).__qualname__}.{hook}: something that it awaited was cancelled") from exc


def snake_case(name: str) -> str:
    """`TextStats` → `text_stats`, `HTTPProxy` → `http_proxy`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return parted.lower().strip("_")


def _hides(what: str, name: str) -> str:
    return f"{what} would hide the service's own {name}; choose another name, like {what}_ or self._{name}"


def _check_hooks(cls: type[Service]) -> None:
    for name in ("started", "draining", "stopped"):
        hook = inspect.getattr_static(cls, name)
        where = f"{cls.__qualname__}.{name}"
        if not inspect.isfunction(hook):
            raise BadDeclaration(f"{where} is a hook of the worker: write `async def {name}(self)`, not {hook!r}"[:300])
        if inspect.isasyncgenfunction(hook) or inspect.isgeneratorfunction(hook):
            raise BadDeclaration(f"{where}: a hook cannot `yield`; clean up in `stopped`")
        if any(p.default is p.empty for p in list(_own_parameters(hook))[1:]):
            raise BadDeclaration(f"{where} takes no arguments but self")


def _own_parameters(function: Any) -> Iterable[inspect.Parameter]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return (each for each in inspect.signature(function).parameters.values() if each.kind not in kinds)


def _check_attributes(cls: type[Service]) -> None:
    where = cls.__qualname__
    for name in sorted(VERBS & vars(cls).keys()):
        if not callable(getattr(cls, name, None)):
            raise BadDeclaration(f"{where}: {_hides(f'{where}.{name}', name)}")
    if not isinstance(cls.config, Mapping):
        raise BadDeclaration(
            f"{where}: config must be a map of defaults of [services.{cls.name}.config], not {cls.config!r}"[:300]
        )
    if not isinstance(cls.name, str) or not _NAME.fullmatch(cls.name):
        raise BadDeclaration(
            f"{where}: name {cls.name!r} is not a service name "
            "(a lower-case letter, then up to 62 of a-z, 0-9, _ and -)"
        )
    if cls.name.startswith(OWN) and not cls.__module__.startswith("mesh."):
        raise BadDeclaration(
            f"{where}: names that begin with {OWN} are reserved for the framework; rename {cls.name!r}"
        )
    if isinstance(cls.needs, str) or not all(isinstance(need, str) for need in cls.needs):
        raise BadDeclaration(f'{where}: needs is a list of service names, like needs = ["users"]')
    for need in cls.needs:
        if not _NAME.fullmatch(need):
            raise BadDeclaration(f"{where}: needs {need!r}, which is not a service name")
    if cls.name in cls.needs:
        raise BadDeclaration(f"{where}: needs itself, so that it would never be ready")
    if isinstance(cls.uses, str) or not set(cls.uses) <= {*CAPABILITIES, "atomic"}:
        known = ", ".join((*CAPABILITIES, "atomic"))
        raise BadDeclaration(f"{where}: uses is a list of capabilities ({known}), not {cls.uses!r}"[:300])
    if not all(isinstance(part, str) for pair in cls.meta.items() for part in pair):
        raise BadDeclaration(f"{where}: meta maps text to text")
    if reserved := [key for key in cls.meta if key.startswith("mesh.")]:
        raise BadDeclaration(f"{where}: meta {reserved[0]!r}: names with the prefix mesh. are reserved; rename it")
    check_interceptors(f"{where}: interceptors", cls.interceptors)
    if type(cls.expose) is not bool:
        raise BadDeclaration(f"{where}: expose {cls.expose!r} is neither True nor False")
    for limit, least in (("concurrency", 1), ("queue", 0)):
        value = getattr(cls, limit)
        if value is not None and (type(value) is not int or value < least):
            raise BadDeclaration(f"{where}: {limit} {value!r} is not a whole number from {least}")

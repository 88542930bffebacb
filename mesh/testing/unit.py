"""One service without a mesh: its methods are called directly, and fakes answer its calls to other services.

Owns: the node of a service in a unit test, and its records.
Leaves to others: the behaviour of fakes (fakes), the durable verbs (unit_durable), whole meshes (whole).

Arguments and answers are encoded and decoded, as between processes: a value that cannot be encoded fails here, too,
and a Struct comes back as the map that an untyped caller would see.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, Unpack

from mesh.calls.answers import Outcome, decode_any
from mesh.calls.checks import Duration, seconds
from mesh.calls.options import CallKeywords, CallOptions
from mesh.calls.request import Decode
from mesh.calls.signature import encode_arguments
from mesh.clock import Clock, LoopClock
from mesh.discovery.record import Instance
from mesh.errors import BadRequest, MeshError, RemoteError, ShapeMismatch, UnknownMethod, UnknownService, from_wire
from mesh.events.event import encode_data
from mesh.events.log import NewEvent
from mesh.events.topics import check_topic
from mesh.node.rpc import Rpc
from mesh.protocol.codec import MAX_BIN
from mesh.protocol.messages import MSGPACK
from mesh.service.service import Service, make
from mesh.service.verbs import DurableVerbs
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.testing.fakes import Behaviour, Fake, Recorded
from mesh.testing.unit_durable import DeferredTask, UnitDurable

S = TypeVar("S", bound=Service)


class Emitted(NamedTuple):
    """One event that the service under test emitted, with its data as a subscriber would receive it."""

    topic: str
    data: Any = None
    key: str | None = None
    meta: dict[str, str] | None = None
    durable: bool = False


class FakeNode(DurableVerbs):
    """The node of a service under test: the verbs of `Node`, answered by fakes.

    State, locks and `atomic` work as they do in a mesh, on the node's own engine in memory. Deferred tasks are stored
    there, but not run.

    Attributes:
        calls: the calls to other services, in order.
        emitted, deferred: the events and the tasks, in order. Those of an `atomic` block are added after its commit,
            and not at all when the block raises.
    """

    def __init__(self, *fakes: Fake | Mapping[str, Any], clock: Clock | None = None) -> None:
        """Args:
        fakes: each a `Fake`, or a map of targets to behaviours: `{"mail.send": None, "users.get": lambda id: …}`.
        """
        self.identity = "unit"
        self.clock: Clock = clock or LoopClock()
        #: The metrics that the service records with `self.metrics`.
        self.recorder = Recorder(self.clock)
        self.calls: list[Recorded] = []
        self.emitted: list[Emitted] = []
        self.fakes: dict[str, Fake] = {}
        for fake in fakes:
            self._add(fake)
        self.rpc = Rpc(self)
        self._options = CallOptions()
        self.deferred: list[DeferredTask] = []
        self._room: UnitDurable | None = None

    @property
    def _durable(self) -> UnitDurable:
        if self._room is None:
            self._room = UnitDurable(self.clock, self.deferred, self._told)
        return self._room

    def _add(self, fake: Fake | Mapping[str, Any]) -> None:
        if isinstance(fake, Fake):
            self.fakes[fake.name] = fake
            return
        for target, does in fake.items():
            service, _, method = target.rpartition(".")
            self.fakes.setdefault(service, Fake(service)).does(**{method: does})

    # --- the verbs ----------------------------------------------------------------------------------------

    def call(self, target: str, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """As `Node.call`; timeouts are ignored."""
        options = _options(target, kwargs)
        begun: asyncio.Future[Any] = self.begin_call(target, encode_arguments(args, kwargs, target), options)
        return begun

    def stream(self, target: str, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """As `Node.stream`."""
        options = _options(target, kwargs)
        items: AsyncIterator[Any] = self.begin_stream(target, encode_arguments(args, kwargs, target), options)
        return items

    async def scatter(
        self, target: str, /, *args: Any, timeout: Duration | None = None, **kwargs: Any
    ) -> list[Outcome]:
        """As `Node.scatter`, with one instance."""
        instance = Instance(service=target.rpartition(".")[0], id=f"{target.rpartition('.')[0]}-fake", epoch=1)
        try:
            return [Outcome(instance, await self.call(target, *args, timeout=timeout, **kwargs))]
        except (UnknownService, UnknownMethod):
            raise
        except MeshError as error:
            return [Outcome(instance, error=error)]

    async def map(
        self, target: str, items: Iterable[Any], *, timeout: Duration | None = None, at_once: int = 256
    ) -> list[Any]:
        """As `Node.map`, but one call after the other."""
        return [await self.call(target, item, timeout=timeout) for item in items]

    def instances(self, service: str) -> tuple[Instance, ...]:
        """One instance of a faked service; none of any other."""
        return (Instance(service=service, id=f"{service}-fake", epoch=0),) if service in self.service_names() else ()

    async def emit(
        self,
        topic: str,
        data: Any = None,
        *,
        key: str | None = None,
        meta: dict[str, str] | None = None,
        durable: bool | None = None,
    ) -> None:
        """As `Node.emit`, but the event is only recorded."""
        if durable:
            await self._durable.emit(topic, data, key, meta)
            return
        body, encoding = encode_data(check_topic(topic), data, MAX_BIN)
        self.emitted.append(Emitted(topic, decode_any(body, encoding), key, meta))

    def _told(self, event: NewEvent) -> None:
        data = decode_any(event.body, event.encoding)
        self.emitted.append(Emitted(event.topic, data, event.key or None, event.meta or None, durable=True))

    def using(self, **options: Unpack[CallKeywords]) -> Rpc:
        """As `Node.using`."""
        return Rpc(self, CallOptions(**options))

    def calls_of(self, target: str) -> list[Recorded]:
        """The calls of "mail.send", in order."""
        return [call for call in self.calls if call.target == target]

    # --- for the proxies of rpc ---------------------------------------------------------------------------

    def begin_call(self, target: str, body: bytes, options: CallOptions, decode: Decode = decode_any) -> Any:
        """Answer a call by the fake of its service; used by `call`."""
        behaviour = self._behaviour(target)
        return _begun(self._answer(behaviour, body, options, decode))

    async def _answer(self, behaviour: Behaviour, body: bytes, options: CallOptions, decode: Decode) -> Any:
        if behaviour.stream:
            raise ShapeMismatch(f"{behaviour.target} is a stream: iterate over it")
        args, kwargs = self._note(behaviour, body, options)
        try:
            answer, encoding = behaviour.encode(await behaviour.answer(args, kwargs), MSGPACK)
        except Exception as exc:
            raise _as_caller_sees(exc) from exc
        return decode(answer, encoding)

    def begin_stream(self, target: str, body: bytes, options: CallOptions, decode: Decode = decode_any) -> Any:
        """Answer a stream by the fake of its service; used by `stream`."""
        return self._items(self._behaviour(target), body, options, decode)

    async def _items(
        self, behaviour: Behaviour, body: bytes, options: CallOptions, decode: Decode
    ) -> AsyncIterator[Any]:
        if not behaviour.stream:
            raise ShapeMismatch(f"{behaviour.target} is a call: await it")
        args, kwargs = self._note(behaviour, body, options)
        try:
            async for item in behaviour.items(args, kwargs):
                yield decode(*behaviour.encode(item, MSGPACK))
        except GeneratorExit:
            raise
        except Exception as exc:
            raise _as_caller_sees(exc) from exc

    def is_stream(self, target: str) -> bool:
        """Whether a fake answers this method with a stream."""
        service, _, method = target.rpartition(".")
        fake = self.fakes.get(service)
        return fake is not None and method in fake.behaviours and fake.behaviours[method].stream

    def service_names(self) -> list[str]:
        """The names of the fakes, sorted."""
        return sorted(self.fakes)

    def method_names(self, service: str) -> list[str]:
        """The methods of one fake, sorted; empty without a fake of this name."""
        fake = self.fakes.get(service)
        return sorted(fake.behaviours) if fake is not None else []

    # --- inside -------------------------------------------------------------------------------------------

    def _behaviour(self, target: str) -> Behaviour:
        service, dot, method = target.rpartition(".")
        if not dot:
            raise BadRequest(f'{target!r} is not a target: write "service.method"')
        fake = self.fakes.get(service)
        if fake is None:
            raise UnknownService(f'no fake of {service!r} was passed: unit(…, Fake("{service}", {method}=…))')
        behaviour = fake.behaviours.get(method)
        if behaviour is None:
            raise UnknownMethod(f"the fake of {service} has no method {method!r}: give it {method}=…")
        if not behaviour.called:
            raise UnknownMethod(f"{target} is a task: use defer() instead of call()")
        return behaviour

    def _note(self, behaviour: Behaviour, body: bytes, options: CallOptions) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = behaviour.decode(body, MSGPACK)
        call = Recorded(behaviour.target, args, kwargs, options.meta or {}, key=options.key)
        self.calls.append(call)
        self.fakes[behaviour.target.rpartition(".")[0]].calls.append(call)
        return args, kwargs


def unit(
    service: type[S],
    /,
    *fakes: Fake | Mapping[str, Any],
    node: FakeNode | None = None,
    config: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
) -> S:
    """Create an instance of a service to test alone, on a node of fakes. Its hooks do not run: the test may call them.

    Args:
        fakes: of the services that it calls; see `FakeNode`.
        node: the node to use, when the test inspects its records.
        config: the values under [services.<name>.config].
        clock: the value of `self.node.clock`; real time when None.
    """
    made = make(service)
    made.node = node or FakeNode(*fakes, clock=clock)
    made.config = {**service.config, **(config or {})}
    made.log = get_logger(f"services.{service.name}", service=service.name)
    return made


def _begun(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start a call at once, awaited or not, and leave its task to the caller, as a real call does."""
    return asyncio.get_running_loop().create_task(coroutine)


def _as_caller_sees(exc: Exception) -> MeshError:
    """The exception of a handler in the form that a remote caller receives."""
    error = exc if isinstance(exc, MeshError) else RemoteError(str(exc), type_name=type(exc).__name__)
    return from_wire(error.to_wire())


def _options(target: str, kwargs: dict[str, Any]) -> CallOptions:
    """Take the options of a call out of its keyword arguments."""
    given: Any = {name: kwargs.pop(name) for name in CallKeywords.__annotations__ if name in kwargs}
    if given.get("timeout") is not None:
        given["timeout"] = seconds(target, "timeout", given["timeout"])
    return CallOptions(**given)

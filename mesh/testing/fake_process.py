"""A fake as a process of the mesh: it is registered, called over the transport, runs tasks and records all of this.

Owns: the fake's node, its record in the registry, its methods in a server, and its tasks in a runner.
Leaves to others: the behaviour of its methods (fakes), its lifecycle (population).
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from mesh.calls.context import CURRENT
from mesh.calls.method import Method
from mesh.discovery.record import Instance, MethodRecord
from mesh.node.node import Node
from mesh.service.decorators import marks_on
from mesh.service.describe import record
from mesh.service.members import members
from mesh.service.service import Service
from mesh.testing.fakes import Arguments, Behaviour, Fake, Recorded
from mesh.worker.task_worker import Shift


class FakeProcess:
    """One running fake."""

    def __init__(self, fake: Fake, node: Node) -> None:
        self.fake = fake
        self.node = node
        self.id = node.identity
        self._endpoint = ""
        self._shifts: list[Shift] = []
        self._offered: set[str] = set()

    async def start(self) -> None:
        """Begin to answer, and register."""
        await self.node.start()
        self._endpoint = await self.node.listen()
        self._tell()
        self.fake.on_change(self._tell)

    async def close(self) -> None:
        """Return its leased tasks, and leave the mesh."""
        for shift in self._shifts:
            await shift.close()
        await self.node.close()

    def abandon(self) -> None:
        """Stop without notifying the engine, like a killed process."""
        for shift in self._shifts:
            shift.abandon("killed")

    def _tell(self) -> None:
        server = self.node.server
        assert server is not None
        calls = self.node.settings.calls
        called = [each for each in self.fake.behaviours.values() if each.called]
        server.host(map(self._method, called), calls.concurrency, calls.queue)
        self.node.agent.register(self._record())
        tasks = {name for name, each in self.fake.behaviours.items() if each.deferred} - self._offered
        if tasks:
            self._offered |= tasks
            shift = Shift(self.node, [self._stand_in(tasks)])
            self._shifts.append(shift)
            shift.begin()

    def _stand_in(self, tasks: set[str]) -> Service:
        """An instance of a subclass of the real class that has only these tasks, each with the fake's behaviour."""
        cls = self.fake.cls
        assert cls is not None, "only a real class declares which methods are tasks"
        body: dict[str, Any] = {"name": cls.name, "__module__": cls.__module__}
        for member in members(cls):
            # An override without marks removes a method.
            body[member.name] = _nothing
            if member.name in tasks:
                assert member.task is not None
                body[member.name] = self._task(member.name, member.function)
                marks_on(body[member.name], "fake").task = msgspec.structs.replace(member.task, offload="")
        return object.__new__(type(cls.__name__, (cls,), body))

    def _task(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        async def run(service: Any, *args: Any, **kwargs: Any) -> Any:
            behaviour = self.fake.behaviours[name]
            self._note(behaviour, (args, kwargs))
            return await behaviour.answer(args, kwargs)

        functools.update_wrapper(run, real, updated=())
        return run

    def _record(self) -> Instance:
        place = {"id": self.id, "epoch": self.node.epoch, "worker": self.id, "endpoint": self._endpoint}
        if self.fake.cls is not None:
            return record(self.fake.cls, **place)  # type: ignore[arg-type]
        return Instance(
            service=self.fake.name,
            methods={
                name: MethodRecord(name=name, stream=behaviour.stream)
                for name, behaviour in self.fake.behaviours.items()
            },
            doc="A fake.",
            **place,  # type: ignore[arg-type]
        )

    def _method(self, behaviour: Behaviour) -> Method:
        async def answer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._note(behaviour, (args, kwargs))
            return await behaviour.answer(args, kwargs)

        async def items(args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
            self._note(behaviour, (args, kwargs))
            async for item in behaviour.items(args, kwargs):
                yield item

        return Method(
            target=behaviour.target,
            service=self.fake.name,
            name=behaviour.target.rpartition(".")[2],
            run=items if behaviour.stream else answer,
            decode_args=behaviour.decode,
            encode_result=behaviour.encode,
            stream=behaviour.stream,
        )

    def _note(self, behaviour: Behaviour, given: Arguments) -> None:
        call = CURRENT.get()
        meta, caller = (dict(call.meta), call.caller) if call is not None else ({}, "")
        self.fake.calls.append(Recorded(behaviour.target, *given, meta, caller))


async def _nothing(service: Any) -> None:
    """Replaces a method that is not faked."""

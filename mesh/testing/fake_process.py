"""A fake as a process of the mesh: registered, called over the transport, recorded.

Owns: the fake's node, its record in the registry, and its methods as the server runs them.
Leaves to others: what it does (fakes), its life (population).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from mesh.calls.context import CURRENT
from mesh.calls.method import Method
from mesh.discovery.record import Instance, MethodRecord
from mesh.service.describe import record
from mesh.service.node import Node
from mesh.testing.fakes import Arguments, Behaviour, Fake, Recorded


class FakeProcess:
    """One fake, running."""

    def __init__(self, fake: Fake, node: Node) -> None:
        self.fake = fake
        self.node = node
        self.id = node.identity
        self._endpoint = ""

    async def start(self) -> None:
        """Answer, and be found."""
        await self.node.start()
        self._endpoint = await self.node.listen()
        self._tell()
        self.fake.on_change(self._tell)

    def _tell(self) -> None:
        server = self.node.server
        assert server is not None
        calls = self.node.settings.calls
        server.host(map(self._method, self.fake.behaviours.values()), calls.concurrency, calls.queue)
        self.node.agent.register(self._record())

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

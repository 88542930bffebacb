"""Testing services: one by itself, or a whole mesh in one process.

Owns: the public face of testing; re-exports only.

A whole mesh, with real hubs, workers and calls, in memory or over real sockets:

>>> import asyncio
>>> import mesh
>>> from mesh.testing import Mesh
>>> class Mailer(mesh.Service):
...     @mesh.rpc
...     async def send(self, to: str, text: str) -> None: ...
>>> class Greeting(mesh.Service):
...     @mesh.rpc
...     async def greet(self, name: str) -> str:
...         await self.rpc.mailer.send(name, f"Hello, {name}!")
...         await self.emit("greeted", {"name": name})
...         return "sent"
>>> async def a_test() -> None:
...     m = Mesh(Greeting, replicas={Greeting: 2})
...     m.fake(Mailer, send=None)
...     async with m:
...         heard = await m.listen("greeted")
...         print(await m.call("greeting.greet", "ujun"))
...         print(m.calls_of("mailer.send")[0].args)
...         await m.faults.kill(Greeting)
...         print(await m.rpc[Greeting].greet("again"), len(m.workers(Greeting)))
...         print([event.data["name"] for event in await heard.wait(2)])
>>> asyncio.run(a_test())
sent
('ujun', 'Hello, ujun!')
sent 1
['ujun', 'again']

One service by itself, without any transport:

>>> from mesh.testing import Fake, FakeNode, unit
>>> async def a_unit_test() -> None:
...     node = FakeNode(Fake(Mailer, send=None))
...     greeting = unit(Greeting, node=node)
...     print(await greeting.greet("ujun"))
...     print(node.calls_of("mailer.send")[0].args, node.emitted[0].topic)
>>> asyncio.run(a_unit_test())
sent
('ujun', 'Hello, ujun!') greeted

With `clock=ManualClock()` no time passes but what the test turns: `await m.advance(10.0)`.
"""

from mesh.clock import ManualClock
from mesh.testing.fakes import Fake, Recorded
from mesh.testing.faults import Faults
from mesh.testing.leaks import no_leaks
from mesh.testing.listening import Heard
from mesh.testing.unit import Emitted, FakeNode, unit
from mesh.testing.whole import Mesh

__all__ = [
    "Emitted",
    "Fake",
    "FakeNode",
    "Faults",
    "Heard",
    "ManualClock",
    "Mesh",
    "Recorded",
    "no_leaks",
    "unit",
]

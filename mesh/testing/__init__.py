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

With `clock=ManualClock()` time passes only when the test advances it: `await m.advance(10.0)`.

Tasks, durable events, state, schedules and locks work in both, on an engine in memory that all processes of a mesh
share; `m.faults.lose_engine()` makes it unreachable. `await m.idle()` returns when no work is left, and `m.queues()`,
`m.jobs("shop.charge")` and `m.dead()` show queues, jobs and dead letters:

>>> class Shop(mesh.Service):
...     @mesh.task(retries=0)
...     async def charge(self, order: str) -> None:
...         async with self.atomic():
...             await self.state("ledger").add(order)
...             await self.emit("order.charged", order, durable=True)
...         if order == "bad":
...             raise ValueError("no money")
>>> async def a_test_of_tasks() -> None:
...     async with Mesh(Shop, clock=ManualClock()) as m:
...         job = await m.defer(Shop.charge, "o1")
...         await m.defer("shop.charge", "bad")
...         await m.idle()
...         print(await job.status(), [key async for key in m.state("ledger").keys()])
...         print([dead.error for dead in await m.dead()])
...     node = FakeNode()
...     await unit(Shop, node=node).charge("o2")
...     print(node.emitted[0].topic, node.emitted[0].durable, (await node.state("ledger").get("o2")).value)
>>> asyncio.run(a_test_of_tasks())
done ['o1']
['ValueError: no money']
order.charged True 1
"""

from mesh.clock import ManualClock
from mesh.testing.fakes import Fake, Recorded
from mesh.testing.faults import Faults
from mesh.testing.forms import multipart
from mesh.testing.leaks import no_leaks
from mesh.testing.listening import Heard
from mesh.testing.unit import Emitted, FakeNode, unit
from mesh.testing.unit_durable import DeferredTask
from mesh.testing.whole import Mesh

__all__ = [
    "DeferredTask",
    "Emitted",
    "Fake",
    "FakeNode",
    "Faults",
    "Heard",
    "ManualClock",
    "Mesh",
    "Recorded",
    "multipart",
    "no_leaks",
    "unit",
]

"""[access] at the callee: whose calls are let in, what a denial looks like on both sides, and what it leaves alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import mesh
from mesh.errors import ConfigError
from mesh.testing import Mesh, no_leaks

pytestmark = pytest.mark.timeout(30)


class Ledger(mesh.Service):
    """Read by some, written by others."""

    name = "ledger"

    def __init__(self) -> None:
        self.written: list[int] = []

    @mesh.rpc
    async def read(self) -> int:
        return sum(self.written)

    @mesh.rpc
    async def write(self, amount: int) -> None:
        self.written.append(amount)

    @mesh.rpc
    async def rows(self) -> AsyncIterator[int]:
        for amount in self.written:
            yield amount


class Clerk(mesh.Service):
    """Asks the ledger on behalf of whoever asks."""

    name = "clerk"

    @mesh.rpc
    async def enter(self, amount: int) -> None:
        await self.call("ledger.write", amount)

    @mesh.rpc
    async def total(self) -> int:
        found: int = await self.call("ledger.read")
        return found


RULES = [
    {"caller": "clerk", "service": "ledger", "methods": ["write"]},
    {"caller": "client", "service": ["clerk", "ledger"], "methods": ["enter", "total", "read"]},
]


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with no_leaks(), Mesh(Ledger, Clerk, settings={"access.allow": RULES}) as m:
        yield m


def denied(m: Mesh) -> int:
    """Denials that the ledgers have counted, of calls by client."""
    return sum(
        int(one["value"])
        for worker in m.workers(Ledger)
        for one in worker.node.recorder.snapshot()["counters"]
        if one["name"] == "calls_forbidden" and one["labels"] == {"caller": "client", "service": "ledger"}
    )


async def test_a_caller_without_a_key_is_known_by_its_role(m: Mesh):
    """In memory and over ipc: the first part of its identity, which is its service's name, or client."""
    await m.call("clerk.enter", 3)
    assert await m.call("ledger.read") == 3
    with pytest.raises(mesh.Forbidden, match=r"'client'.*ledger\.write.*\[\[access\.allow\]\].*ledger-"):
        await m.call("ledger.write", 4)
    with pytest.raises(mesh.MeshError) as caught:
        await m.call("clerk.total")
    # That the clerk is denied is the clerk's failure: its caller, who may call it, can do nothing about it.
    assert (caught.value.code, caught.value.status) == ("handler_error", 500)
    assert caught.value.details == {"nested": "forbidden"}
    assert m.instances(Ledger)[0].written == [3]


async def test_a_denial_is_refused_once_and_not_tried_elsewhere(m: Mesh):
    """Other instances have the same rules: asking them would cost time and change nothing."""
    await m.start_another(Ledger)
    for _ in range(3):
        with pytest.raises(mesh.Forbidden):
            await m.call("ledger.write", 1)
    assert denied(m) == 3


async def test_streams_are_denied_like_calls(m: Mesh):
    """Before the first item."""
    with pytest.raises(mesh.Forbidden):
        await anext(aiter(m.stream("ledger.rows")))


async def test_who_may_not_call_learns_no_names(m: Mesh):
    """A denial comes before "there is no such method; did you mean …"."""
    with pytest.raises(mesh.Forbidden) as caught:
        await m.call("ledger.wrte", 1)
    assert "write" not in caught.value.message


async def test_a_flood_of_names_takes_no_memory(m: Mesh):
    """Who makes up methods is denied each time, and remembered for a thousand of them."""
    from mesh.calls.authorization import REMEMBERED

    (worker,) = m.workers(Ledger)
    await m.call("ledger.read")
    for number in range(REMEMBERED + 50):
        with pytest.raises(mesh.Forbidden):
            await m.call(f"ledger.made_up_{number}")
    server = worker.node.server
    assert server is not None
    assert max(len(conversation.permits) for conversation in server._conversations) == REMEMBERED
    assert await m.call("ledger.read") == 0


async def test_without_access_everybody_may_call_everything():
    """Nothing is declared, nothing is asked, nothing is remembered."""
    async with Mesh(Ledger) as m:
        await m.call("ledger.write", 1)
        (worker,) = m.workers(Ledger)
        server = worker.node.server
        assert server is not None
        assert server._authorization is None
        assert all(conversation.permits == {} for conversation in server._conversations)


async def test_the_state_of_a_process_may_still_be_asked(m: Mesh):
    """Pages and `mesh ps` go on, whatever the rules about services."""
    info = await m.call("$worker.info", instance=m.node.instances("ledger")[0].id)
    assert info["identity"].startswith("ledger-")


def test_a_wrong_rule_is_told():
    """In a test as in mesh.toml."""
    with pytest.raises(ConfigError, match=r'access\.allow\.0\.method: .*"methods"\?'):
        Mesh(Ledger, settings={"access.allow": [{"caller": "a", "service": "b", "method": "c"}]})

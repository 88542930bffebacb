"""State: what every engine promises of keys and values."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from engine_carts import Carts
from engine_rig import T_S, Rig

from mesh import ids
from mesh.errors import BadRequest, Conflict
from mesh.state.contract import Entry, Write

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("state",)


@pytest.fixture
async def carts(rig: Rig) -> Carts:
    engine = await rig.engine()
    return Carts(engine.state)


# --- values and their versions ------------------------------------------------------------------------------


async def test_what_was_written_is_read(carts: Carts) -> None:
    """A value comes back as it was given, under the etag that its writer made."""
    write = carts.put("u1", {"items": [1, 2], "näme": "Ü"})
    [answer] = await carts.state.write([write], timeout_s=T_S)
    entry = await carts.entry("u1")
    assert entry == Entry("u1", write.value, write.new_etag)
    assert answer == Entry("u1", b"", write.new_etag), "the value is not sent back to who wrote it"


async def test_what_was_never_written_is_absent(carts: Carts) -> None:
    """An unknown key, or namespace, is nothing to fail about."""
    assert await carts.entry("u1") is None
    assert await carts.state.page("nowhere", timeout_s=T_S) == []


async def test_a_read_sees_every_confirmed_write(rig: Rig, carts: Carts) -> None:
    """Whoever is told that a write was done, can send others to read it."""
    other = Carts((await rig.engine()).state)
    for number in range(5):
        await carts.set("u1", number)
        assert await other.get("u1") == number


async def test_every_write_makes_another_version(carts: Carts) -> None:
    """Two writes never leave the same etag, even of the same value."""
    first = await carts.set("u1", 1)
    second = await carts.set("u1", 1)
    assert first.etag != second.etag
    assert await carts.etag("u1") == second.etag


async def test_without_an_etag_a_write_takes_whatever_is_there(carts: Carts) -> None:
    """None asks nothing."""
    await carts.set("u1", 1)
    await carts.set("u1", 2, etag=None)
    await carts.delete("u1", etag=None)
    await carts.delete("u1", etag=None)
    assert await carts.entry("u1") is None


async def test_an_empty_etag_writes_only_what_is_absent(carts: Carts) -> None:
    """ "" is insert-only: of two who insert, one does."""
    first = await carts.set("u1", 1, etag="")
    with pytest.raises(Conflict) as refused:
        await carts.set("u1", 2, etag="")
    assert refused.value.details["key"] == "u1"
    assert await carts.get("u1") == 1
    assert await carts.etag("u1") == first.etag


async def test_an_etag_writes_only_over_that_version(carts: Carts) -> None:
    """Compare-and-set: whoever read an older version is refused and changes nothing."""
    first = await carts.set("u1", 1)
    second = await carts.set("u1", 2, etag=first.etag)
    with pytest.raises(Conflict):
        await carts.set("u1", 3, etag=first.etag)
    with pytest.raises(Conflict):
        await carts.delete("u1", etag=first.etag)
    assert await carts.get("u1") == 2
    await carts.delete("u1", etag=second.etag)
    assert await carts.entry("u1") is None


async def test_an_etag_does_not_fit_what_is_absent(carts: Carts) -> None:
    """What was deleted has no version any more."""
    first = await carts.set("u1", 1)
    await carts.delete("u1")
    with pytest.raises(Conflict):
        await carts.set("u1", 2, etag=first.etag)
    with pytest.raises(Conflict):
        await carts.add("u1", 1, etag=first.etag)
    await carts.set("u1", 2, etag="")


async def test_of_many_who_compare_and_set_at_once_one_wins(rig: Rig, carts: Carts) -> None:
    """Each version has one successor, however many try."""
    first = await carts.set("u1", 0)
    others = [Carts((await rig.engine()).state) for _ in range(3)]

    async def attempt(of: Carts, value: int) -> int | None:
        try:
            await of.set("u1", value, etag=first.etag)
        except Conflict:
            return None
        return value

    values = await asyncio.gather(*(attempt(of, number) for number, of in enumerate(others * 4)))
    [winner] = [value for value in values if value is not None]
    assert await carts.get("u1") == winner


async def test_a_write_that_is_repeated_was_done(carts: Carts) -> None:
    """A writer who got no answer asks again with the same `new_etag`: it is told what was done, not done twice."""
    first = await carts.set("u1", 1)
    again = carts.put("u1", 2, etag=first.etag)
    more = Write("carts", "n", "add", ids.etag(), by=5)
    once = await carts.state.write([again, more], timeout_s=T_S)
    twice = await carts.state.write([again, more], timeout_s=T_S)
    assert once == twice
    assert await carts.get("n") == 5


# --- adding -------------------------------------------------------------------------------------------------


async def test_adding_counts_from_nothing(carts: Carts) -> None:
    """An absent key counts as 0, and the sum comes back."""
    assert await carts.add("n", 3) == 3
    assert await carts.add("n", -5) == -2
    assert await carts.get("n") == -2


async def test_no_addition_is_lost(rig: Rig, carts: Carts) -> None:
    """Many who add at once each count, and each gets a sum of its own."""
    others = [Carts((await rig.engine()).state) for _ in range(3)]
    sums = await asyncio.gather(*(other.add("n", 1) for other in others for _ in range(20)))
    assert sorted(sums) == list(range(1, 61))
    assert await carts.get("n") == 60


@pytest.mark.parametrize("value", ["seven", 1.0, True, None, [1]])
async def test_what_is_no_whole_number_is_not_added_to(carts: Carts, value: Any) -> None:
    """The mistake is told, and the value stays."""
    await carts.set("n", value)
    with pytest.raises(BadRequest):
        await carts.add("n", 1)
    assert await carts.get("n") == value


async def test_an_addition_gives_no_value_away(carts: Carts) -> None:
    """Who may write and not read learns an etag from a conflict; an addition under that etag is no repetition."""
    secret = carts.put("u1", {"card": "4111"})
    await carts.state.write([secret], timeout_s=T_S)
    guess = Write(secret.namespace, "u1", "add", secret.new_etag, by=0)
    with pytest.raises(BadRequest):
        await carts.state.write([guess], timeout_s=T_S)


async def test_a_sum_beyond_64_bits_is_refused(carts: Carts) -> None:
    """Numbers do not turn over, and no reader gets one that it cannot read."""
    await carts.add("n", 2**63 - 1)
    with pytest.raises(BadRequest):
        await carts.add("n", 1)
    assert await carts.get("n") == 2**63 - 1


async def test_adding_compares_too(carts: Carts) -> None:
    """An etag holds for `add` as for every write."""
    await carts.add("n", 1, etag="")
    version = await carts.etag("n")
    with pytest.raises(Conflict):
        await carts.add("n", 1, etag="")
    assert await carts.add("n", 1, etag=version) == 2


# --- time to live -------------------------------------------------------------------------------------------


async def test_a_value_is_gone_when_its_time_is_over(rig: Rig, carts: Carts) -> None:
    """From that instant on it is absent for every kind of reading; until then it is there."""
    entry = await carts.set("u1", 1, ttl_s=30.0)
    assert entry.expires_at == pytest.approx(rig.clock.wall() + 30.0, abs=2.0)
    await carts.set("u2", 2)
    await rig.pass_time(29.0)
    assert await carts.get("u1") == 1
    await rig.pass_time(1.01)
    assert await carts.entry("u1") is None
    assert await carts.keys() == ["u2"]
    assert await carts.state.namespaces(timeout_s=T_S) == [("carts", 1)]


async def test_what_is_over_is_absent_for_writers_too(rig: Rig, carts: Carts) -> None:
    """It can be inserted anew, its etag fits nothing, and adding begins at nothing."""
    first = await carts.set("u1", 1, ttl_s=5.0)
    await carts.add("n", 7, ttl_s=5.0)
    await rig.pass_time(5.01)
    with pytest.raises(Conflict):
        await carts.set("u1", 2, etag=first.etag)
    await carts.set("u1", 2, etag="")
    assert await carts.add("n", 1) == 1


async def test_a_later_write_sets_the_time_anew(rig: Rig, carts: Carts) -> None:
    """Each `set` says how long: also for ever."""
    await carts.set("u1", 1, ttl_s=5.0)
    await carts.set("u2", 1, ttl_s=5.0)
    await carts.set("u1", 2)
    await carts.set("u2", 2, ttl_s=60.0)
    await rig.pass_time(30.0)
    assert [await carts.get("u1"), await carts.get("u2")] == [2, 2]
    await rig.pass_time(31.0)
    assert [await carts.get("u1"), await carts.get("u2")] == [2, None]


async def test_adding_keeps_the_time_to_live(rig: Rig, carts: Carts) -> None:
    """A counter that is there ends when it would have; only a new one takes the time that `add` says."""
    await carts.add("n", 1, ttl_s=10.0)
    await rig.pass_time(6.0)
    assert await carts.add("n", 1, ttl_s=100.0) == 2
    await rig.pass_time(4.01)
    assert await carts.entry("n") is None


# --- transactions -------------------------------------------------------------------------------------------


async def test_a_transaction_is_done_as_a_whole(carts: Carts) -> None:
    """Several keys and namespaces at once; the answers are in the order of the writes."""
    await carts.set("old", 1)
    writes = [
        carts.put("u1", 1),
        Write("carts", "old", "delete", ids.etag()),
        Write("counts", "n", "add", ids.etag(), by=2),
    ]
    first, second, third = await carts.state.write(writes, timeout_s=T_S)
    assert first is not None
    assert (first.key, first.etag, first.value) == ("u1", writes[0].new_etag, b"")
    assert second is None
    assert third is not None
    assert (third.key, msgspec.msgpack.decode(third.value)) == ("n", 2)
    assert [await carts.get("u1"), await carts.get("old")] == [1, None]


@pytest.mark.parametrize("bad", ["etag", "add"])
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_transaction_with_one_bad_write_does_nothing(carts: Carts, bad: str, place: int) -> None:
    """Wherever it stands, and the error names its key."""
    await carts.set("bad", "text")
    wrong = carts.put("bad", 1, etag="") if bad == "etag" else Write("carts", "bad", "add", ids.etag(), by=1)
    writes = [carts.put("u1", 1), carts.put("u2", 2)]
    writes.insert(place, wrong)
    with pytest.raises(Conflict if bad == "etag" else BadRequest) as refused:
        await carts.state.write(writes, timeout_s=T_S)
    if bad == "etag":
        assert refused.value.details["key"] == "bad"
    assert await carts.keys() == ["bad"]
    assert await carts.get("bad") == "text"


async def test_writes_of_one_transaction_follow_each_other(carts: Carts) -> None:
    """A later one sees what an earlier one of the same transaction leaves."""
    first = carts.put("u1", 1, etag="")
    await carts.state.write([first, carts.put("u1", 2, etag=first.new_etag)], timeout_s=T_S)
    assert await carts.get("u1") == 2
    again = [Write("carts", "n", "add", ids.etag(), by=1) for _ in range(3)]
    await carts.state.write(again, timeout_s=T_S)
    assert await carts.get("n") == 3


async def test_transactions_do_not_mix(rig: Rig, carts: Carts) -> None:
    """Two keys that are always written together are always read as one of those pairs."""
    other = Carts((await rig.engine()).state)
    await carts.state.write([carts.put("a", 0), carts.put("b", 0)], timeout_s=T_S)

    async def write(of: Carts, numbers: range) -> None:
        for number in numbers:
            await of.state.write([of.put("a", number), of.put("b", number)], timeout_s=T_S)

    async def read() -> None:
        for _ in range(30):
            entries = await other.state.get("carts", ["a", "b"], timeout_s=T_S)
            a, b = (msgspec.msgpack.decode(entry.value) for entry in entries if entry is not None)
            assert a == b

    await asyncio.gather(write(carts, range(1, 30)), write(other, range(100, 130)), read())

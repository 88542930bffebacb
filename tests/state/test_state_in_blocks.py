"""state.namespace inside of an atomic block: nothing is written, and what was written is seen."""

from __future__ import annotations

import pytest
from state_bench import Bench, Collected

from mesh.errors import BadRequest, Conflict


async def test_nothing_is_written_before_the_commit(bench: Bench) -> None:
    """And then all of it, with the etags that were answered."""
    carts, stock = bench.state(), bench.state("stock")
    await carts.set("gone", 1)
    bench.block = Collected()
    etag = await carts.set("u1", ["pear"])
    assert await stock.add("pears", -1) is None
    await carts.delete("gone")
    (moved,) = await carts.transaction([stock.put("figs", 1)])
    assert bench.store.asked == ["write 1"], "the one before the block"
    await bench.commit()
    assert await carts.get("u1") == (["pear"], etag)
    assert (await stock.get("pears")).value == -1
    assert (await stock.get("figs")).etag == moved
    assert not (await carts.get("gone")).exists


async def test_a_block_sees_what_it_wrote(bench: Bench) -> None:
    """The last of several changes; others do not see it."""
    carts = bench.state()
    await carts.set("old", "stored")
    await carts.set("kept", "stored")
    bench.block = block = Collected()
    await carts.set("u1", 1)
    etag = await carts.set("u1", 2)
    await carts.delete("old")
    assert await carts.get("u1") == (2, etag)
    found = await carts.get_many(["u1", "old", "kept", "none"])
    assert [value.value for value in found.values()] == [2, None, "stored", None]
    assert not found["old"].exists
    assert not (await bench.state("other").get("u1")).exists, "another namespace"
    bench.block = None
    assert not (await carts.get("u1")).exists
    assert (await carts.get("old")).value == "stored"
    bench.block = block
    await bench.commit()


async def test_a_block_sees_what_goes_before_it(bench: Bench) -> None:
    """A block around it, or one that ended earlier in the same task: they are committed together, in order."""
    carts = bench.state()
    bench.block = before = Collected()
    await carts.set("u1", 1)
    etag = await carts.set("u2", 1)
    bench.block = Collected(before)
    assert (await carts.get("u1")).value == 1
    await carts.delete("u1")
    assert not (await carts.get("u1")).exists
    assert (await carts.get("u2")).etag == etag
    bench.block = before
    assert (await carts.get("u1")).value == 1, "the block around it does not see into it"


async def test_an_etag_of_the_block_is_good_in_the_block(bench: Bench) -> None:
    """Read, changed and written again: the same code works inside and outside."""
    carts = bench.state()
    bench.block = Collected()
    await carts.set("u1", 1, etag="")
    value, etag = await carts.get("u1")
    await carts.set("u1", (value or 0) + 1, etag=etag)
    await carts.delete("u2")
    await carts.set("u2", 5, etag=(await carts.get("u2")).etag)
    await bench.commit()
    assert (await carts.get("u1")).value == 2
    assert (await carts.get("u2")).value == 5


async def test_a_conflict_shows_at_the_commit(bench: Bench) -> None:
    """Somebody wrote in between: nothing of the block is written."""
    carts = bench.state()
    await carts.set("u1", 1)
    _, etag = await carts.get("u1")
    bench.block = block = Collected()
    await carts.set("u1", 2, etag=etag)
    await carts.set("u2", 2)
    bench.block = None
    await carts.set("u1", 100)
    bench.block = block
    with pytest.raises(Conflict):
        await bench.commit()
    assert not (await carts.get("u2")).exists


async def test_a_sum_is_not_known_before_the_commit(bench: Bench) -> None:
    """Others may add too: no number is shown that may be wrong, and no etag that would hide what they did."""
    hits = bench.state("hits")
    bench.block = Collected()
    await hits.add("home")
    with pytest.raises(BadRequest, match=r'"hits".*"home"'):
        await hits.get("home")
    await hits.set("home", 7)
    assert (await hits.get("home")).value == 7
    await bench.commit()
    assert (await hits.get("home")).value == 7


async def test_clear_is_no_part_of_a_block(bench: Bench) -> None:
    """It reads what is stored, page by page, and a block is one step."""
    bench.block = Collected()
    with pytest.raises(BadRequest, match="clear"):
        await bench.state().clear()

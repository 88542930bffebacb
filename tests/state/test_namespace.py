"""state.namespace: keys and values as users know them."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from state_bench import MAX_BYTES, Bench

from mesh.calls.context import CURRENT
from mesh.errors import BadArguments, BadReply, BadRequest, Conflict, TooLarge, Unavailable
from mesh.state.namespace import AT_ONCE, MOST_WRITES, Namespace
from mesh.state.values import Value


class Cart(msgspec.Struct):
    """What a shop keeps."""

    items: list[str] = []
    total: int = 0


@dataclasses.dataclass
class Point:
    """The same as a dataclass."""

    x: int
    y: int = 0


# --- one key ----------------------------------------------------------------------------------------------


async def test_what_was_set_is_read(bench: Bench) -> None:
    """With the etag that set had answered."""
    carts = bench.state()
    etag = await carts.set("u1", {"items": ["pear"], "total": 3})
    value, read = await carts.get("u1")
    assert value == {"items": ["pear"], "total": 3}
    assert read == etag


async def test_what_is_absent_is_none_with_an_empty_etag(bench: Bench) -> None:
    """A None that was stored can be told from it."""
    carts = bench.state()
    assert await carts.get("u1") == (None, "")
    assert not (await carts.get("u1")).exists
    await carts.set("u1", None)
    found = await carts.get("u1")
    assert found.value is None
    assert found.exists


@pytest.mark.parametrize("value", [None, 0, -(2**63), 1.5, "ü", b"\x00\xff", [1, [2]], {"a": {"b": 1}}, True])
async def test_plain_values_come_back_as_they_were(bench: Bench, value: Any) -> None:
    """Whatever MessagePack knows."""
    state = bench.state()
    await state.set("k", value)
    assert (await state.get("k")).value == value


async def test_typed_values(bench: Bench) -> None:
    """The type stands at the namespace, or at one read."""
    carts: Namespace[Cart] = bench.state(type=Cart)
    await carts.set("u1", Cart(["pear"], 3))
    cart, _ = await carts.get("u1")
    assert cart == Cart(["pear"], 3)
    assert (await bench.state().get("u1")).value == {"items": ["pear"], "total": 3}
    points = bench.state("points")
    await points.set("p", Point(1))
    assert (await points.get("p", type=Point)).value == Point(1)
    assert (await points.get_many(["p"], type=Point))["p"].value == Point(1)
    assert [item async for item in points.items(type=Point)] == [("p", Point(1))]


async def test_what_is_not_of_the_type_is_an_error_that_says_where(bench: Bench) -> None:
    """Namespace, key, type, and what is wrong."""
    await bench.state().set("u1", {"items": "pear"})
    with pytest.raises(BadReply) as caught:
        await bench.state(type=Cart).get("u1")
    for word in ('"carts"', '"u1"', "Cart", "$.items"):
        assert word in caught.value.message


async def test_delete(bench: Bench) -> None:
    """It does not matter whether there was anything."""
    carts = bench.state()
    await carts.set("u1", 1)
    await carts.delete("u1")
    await carts.delete("u1")
    assert not (await carts.get("u1")).exists


async def test_add_counts(bench: Bench) -> None:
    """From nothing, up and down; the number is a value like any other."""
    hits = bench.state("hits")
    assert await hits.add("home") == 1
    assert await hits.add("home", 10) == 11
    assert await hits.add("home", -12) == -1
    assert (await hits.get("home")).value == -1
    await hits.set("text", "one")
    with pytest.raises(BadRequest, match="hits/text"):
        await hits.add("text")


async def test_concurrent_adds_lose_nothing(bench: Bench) -> None:
    """Nobody reads before they write."""
    hits = bench.state("hits")
    answers = await asyncio.gather(*(hits.add("home") for _ in range(100)))
    assert sorted(answers) == list(range(1, 101))


# --- etags ------------------------------------------------------------------------------------------------


async def test_an_etag_keeps_others_writes(bench: Bench) -> None:
    """Who read before the other wrote is told so, and has changed nothing."""
    carts = bench.state()
    await carts.set("u1", 1)
    _, mine = await carts.get("u1")
    await carts.set("u1", 2)
    with pytest.raises(Conflict) as caught:
        await carts.set("u1", 10, etag=mine)
    assert caught.value.details["key"] == "u1"
    with pytest.raises(Conflict):
        await carts.delete("u1", etag=mine)
    assert (await carts.get("u1")).value == 2


async def test_an_empty_etag_inserts(bench: Bench) -> None:
    """Of two who would be first, one is."""
    carts = bench.state()
    etag = await carts.set("u1", 1, etag="")
    with pytest.raises(Conflict):
        await carts.set("u1", 2, etag="")
    await carts.set("u1", 3, etag=etag)
    assert (await carts.get("u1")).value == 3


async def test_what_get_gave_is_what_set_takes(bench: Bench) -> None:
    """The loop that everybody writes: also right when the key is absent at first."""
    carts = bench.state()

    async def put_in(item: str) -> None:
        while True:
            cart, etag = await carts.get("u1")
            try:
                await carts.set("u1", [*(cart or []), item], etag=etag)
            except Conflict:
                await asyncio.sleep(0)
                continue
            return

    await asyncio.gather(*(put_in(str(number)) for number in range(20)))
    assert sorted((await carts.get("u1")).value or [], key=int) == [str(number) for number in range(20)]


# --- time to live -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ttl", "seconds"), [("30m", 1800), (90, 90), (0.5, 0.5), ("1h30m", 5400)])
async def test_a_time_to_live_ends(bench: Bench, ttl: Any, seconds: float) -> None:
    """Given as text with a unit, or in seconds."""
    state = bench.state()
    await state.set("k", 1, ttl=ttl)
    await bench.clock.advance(seconds - 0.25)
    assert (await state.get("k")).exists
    await bench.clock.advance(0.5)
    assert not (await state.get("k")).exists
    assert [key async for key in state.keys("")] == []


async def test_a_write_without_a_time_to_live_has_none(bench: Bench) -> None:
    """An add keeps that of the key which is there."""
    state = bench.state()
    await state.set("k", 1, ttl=10)
    await state.set("k", 2)
    await state.add("n", ttl=10)
    await state.add("n", ttl=1000)
    await bench.clock.advance(11)
    assert (await state.get("k")).value == 2
    assert not (await state.get("n")).exists


# --- several keys -----------------------------------------------------------------------------------------


async def test_get_many_answers_for_each_key(bench: Bench) -> None:
    """In the order of the question; absent ones too."""
    state = bench.state()
    await state.set("b", 2)
    found = await state.get_many(["c", "b", "a", "b"])
    assert list(found) == ["c", "b", "a"]
    assert found["b"].value == 2
    assert found["a"] == Value(None, "")
    assert await state.get_many([]) == {}


async def test_get_many_of_very_many_is_several_questions(bench: Bench) -> None:
    """And so is one whose answer would be too large."""
    state = bench.state()
    keys = [f"k{number}" for number in range(2 * AT_ONCE + 1)]
    await state.transaction([state.put(key, key) for key in keys])
    bench.store.asked.clear()
    found = await state.get_many(keys)
    assert [value.value for value in found.values()] == keys
    assert bench.store.asked == [f"get {AT_ONCE}", f"get {AT_ONCE}", "get 1"]
    bench.store.most = 100
    assert await state.get_many(keys[:64]) == dict(list(found.items())[:64])


async def test_a_transaction_is_all_or_nothing(bench: Bench) -> None:
    """Over several namespaces."""
    carts, stock = bench.state(), bench.state("stock")
    await stock.set("pears", 5)
    etags = await carts.transaction([carts.put("u1", ["pear"], etag=""), stock.plus("pears", -1), stock.remove("figs")])
    assert etags[0] == (await carts.get("u1")).etag
    assert etags[1] == (await stock.get("pears")).etag
    assert etags[2] == ""
    with pytest.raises(Conflict) as caught:
        await carts.transaction([stock.plus("pears", -1), carts.put("u1", [], etag="")])
    assert caught.value.details["namespace"] == "carts"
    assert (await stock.get("pears")).value == 4
    assert await carts.transaction([]) == []


async def test_a_transaction_goes_in_order(bench: Bench) -> None:
    """A later change sees the earlier ones."""
    state = bench.state()
    await state.transaction([state.put("k", 1), state.plus("k", 2), state.plus("k", 3)])
    assert (await state.get("k")).value == 6


# --- listing ----------------------------------------------------------------------------------------------


async def test_listing_is_in_order_and_by_prefix(bench: Bench) -> None:
    """In the order of UTF-8 bytes, through as many pages as it takes."""
    state = bench.state()
    keys = [f"u{number:04}" for number in range(450)]
    await state.transaction([state.put(key, key.upper()) for key in [*keys, "a", "v", "ü"]])
    assert [key async for key in state.keys("u")] == keys
    assert [item async for item in state.items(prefix="u")] == [(key, key.upper()) for key in keys]
    assert [key async for key in state.keys("")] == ["a", *keys, "v", "ü"]
    assert [key async for key in state.keys("nothing")] == []
    assert [key async for key in bench.state("other").keys("")] == []


async def test_a_listing_goes_on_while_things_change(bench: Bench) -> None:
    """What was there all the time is seen once, whatever happens around it."""
    state = bench.state()
    stays = [f"k{number:04}" for number in range(0, 1000, 2)]
    goes = [f"k{number:04}" for number in range(1, 1000, 2)]
    await state.transaction([state.put(key, 1) for key in stays + goes])
    seen: list[str] = []
    async for key in state.keys("k"):
        seen.append(key)
        if goes:
            await state.delete(goes.pop())
            await state.set(f"{key}-new", 2)
    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen)
    assert set(stays) <= set(seen)


async def test_a_listing_of_large_values_asks_for_fewer(bench: Bench) -> None:
    """An answer that would be too large is asked for in parts."""
    state = bench.state()
    await state.transaction([state.put(f"k{number:02}", b"x" * 1000) for number in range(30)])
    bench.store.most = 5000
    assert len([key async for key in state.keys("")]) == 30


async def test_clear_deletes_what_begins_so(bench: Bench) -> None:
    """And nothing else."""
    state = bench.state()
    await state.transaction([state.put(f"{letter}{number}", 1) for letter in "ab" for number in range(300)])
    assert await state.clear("a") == 300
    assert len([key async for key in state.keys("")]) == 300
    assert await state.clear() == 300
    assert await state.clear() == 0


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "ü", "a" * 256, 7, None, "a\n"])
def test_a_namespace_is_a_plain_name(bench: Bench, name: Any) -> None:
    """One that can stand on a command line."""
    with pytest.raises(BadRequest, match="state"):
        bench.state(name)


@pytest.mark.parametrize("name", ["carts", "album:7", "a.b/c-d_e", "A" * 255, "_x", "7"])
def test_a_namespace_may_be_made_of_parts(bench: Bench, name: str) -> None:
    """Letters, digits and a few signs."""
    assert bench.state(name).name == name


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "key"),
        (7, "key 7"),
        (None, "key None"),
        ("é" * 513, "1026"),
        ("a\0b", r"'a\x00b'"),
        ("\ud800", "UTF-8"),
    ],
)
async def test_a_key_is_text_of_some_length(bench: Bench, key: Any, words: str) -> None:
    """Refused before anything is sent, by every verb."""
    state = bench.state()
    verbs: list[Callable[[], Any]] = [
        lambda: state.get(key),
        lambda: state.get_many([key]),
        lambda: state.set(key, 1),
        lambda: state.add(key),
        lambda: state.delete(key),
    ]
    for verb in verbs:
        with pytest.raises(BadRequest) as caught:
            await verb()
        assert words in caught.value.message
        assert '"carts"' in caught.value.message
    assert bench.store.asked == []


async def test_the_longest_key_is_kept(bench: Bench) -> None:
    """A limit is a promise."""
    state = bench.state()
    await state.set("é" * 512, 1)
    assert [key async for key in state.keys("é" * 512)] == ["é" * 512]


async def test_a_value_that_is_too_large(bench: Bench) -> None:
    """The limit is named, with where it is set."""
    state = bench.state()
    await state.set("k", b"x" * (MAX_BYTES - 5000))
    with pytest.raises(TooLarge) as caught:
        await state.set("k", b"x" * MAX_BYTES)
    for word in ("calls.max_body", "1MiB", '"k"'):
        assert word in caught.value.message


async def test_a_transaction_that_is_too_large(bench: Bench) -> None:
    """Together they must fit too."""
    state = bench.state()
    part = b"x" * (MAX_BYTES // 3)
    with pytest.raises(TooLarge, match=r"calls\.max_body"):
        await state.transaction([state.put(f"k{number}", part) for number in range(4)])
    with pytest.raises(TooLarge, match=str(MOST_WRITES)):
        await state.transaction([state.plus("k")] * (MOST_WRITES + 1))


async def test_a_value_that_cannot_be_kept(bench: Bench) -> None:
    """With its type."""
    with pytest.raises(BadArguments, match=r'"u1".*\bobject\b'):
        await bench.state().set("u1", object())


def test_a_type_that_cannot_be_read(bench: Bench) -> None:
    """Where it is written, not at the first read."""
    with pytest.raises(BadArguments, match="Cart"):
        bench.state(type=dict[tuple[int], int] | Cart | Point)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ttl": "30"}, 'write "30s"'),
        ({"ttl": 0}, "ttl=0"),
        ({"ttl": -1}, "ttl=-1"),
        ({"ttl": float("nan")}, "ttl=nan"),
        ({"ttl": True}, "ttl=True"),
        ({"etag": 7}, "etag=7"),
        ({"etag": ("v", "e")}, "get()"),
    ],
)
async def test_options_that_are_none(bench: Bench, options: dict[str, Any], words: str) -> None:
    """With the mend."""
    with pytest.raises(BadRequest) as caught:
        await bench.state().set("u1", 1, **options)
    assert words in caught.value.message


@pytest.mark.parametrize("by", [1.5, "1", True, 2**63])
async def test_add_takes_whole_numbers(bench: Bench, by: Any) -> None:
    """Of 64 bits."""
    with pytest.raises(BadRequest, match=re.escape(f"by={by!r}")):
        await bench.state().add("n", by)


async def test_one_text_is_not_many_keys(bench: Bench) -> None:
    """get_many("abc") would ask for a, b and c."""
    with pytest.raises(BadRequest, match="abc"):
        await bench.state().get_many("abc")


# --- an engine that is away -------------------------------------------------------------------------------


async def test_verbs_wait_for_an_engine_that_is_away(bench: Bench) -> None:
    """As long as they were told to."""
    state = bench.state()
    bench.engine.cut()
    waiting = asyncio.create_task(state.set("k", 1))
    await bench.clock.advance(9)
    bench.engine.mend()
    await waiting
    bench.engine.cut()
    failing = asyncio.create_task(state.get("k"))
    await bench.clock.advance(10.1)
    with pytest.raises(Unavailable):
        await failing


class Call(msgspec.Struct):
    """As much of a call's context as state looks at."""

    deadline_at: float


async def test_no_verb_waits_longer_than_the_call_has_left(bench: Bench) -> None:
    """Its caller has gone by then."""
    bench.engine.cut()

    async def inside() -> None:
        CURRENT.set(Call(bench.clock.now() + 2))  # type: ignore[arg-type]
        await bench.state().get("k")

    failing = asyncio.create_task(inside())
    await bench.clock.advance(2.1)
    with pytest.raises(Unavailable):
        await failing

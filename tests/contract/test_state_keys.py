"""State: what every engine promises of many keys, of pages and namespaces, and of a restart."""

from __future__ import annotations

import pytest
from engine_carts import Carts
from engine_rig import T_S, Rig, over_processes

from mesh.errors import BadRequest, Conflict
from mesh.state.contract import MAX_KEY, MAX_NAMESPACE

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("state",)


@pytest.fixture
async def carts(rig: Rig) -> Carts:
    engine = await rig.engine()
    return Carts(engine.state)


# --- many keys ----------------------------------------------------------------------------------------------


async def test_many_keys_are_read_at_once(carts: Carts) -> None:
    """In the order in which they were asked for, with None where nothing is, a key twice when asked for twice."""
    await carts.state.write([carts.put(f"u{number}", number) for number in range(200)], timeout_s=T_S)
    asked = ["u7", "nobody", "u199", "u7", *(f"u{number}" for number in range(200))]
    entries = await carts.state.get("carts", asked, timeout_s=T_S)
    assert [entry.key if entry is not None else None for entry in entries] == ["u7", None, *asked[2:]]
    assert await carts.state.get("carts", [], timeout_s=T_S) == []


#: Keys that tempt an engine to compare, cut or match them as something else than UTF-8 bytes.
ODD_KEYS = [
    "a",
    "A",
    "a%",
    "a_",
    "ab",
    "a\x00",
    "a\x00b",
    "a\x7f",
    "aä",
    "a\u00df",
    "a\ud7ff",
    "a\ue000",
    "a\uffff",
    "a\U00010000",
    "a\U0010ffff",
    "a\U0010ffffz",
    "b",
    "*",
    "[a-z]",
    "ä",
    "\u0061\u0308",
    " ",
    "\n",
    "'",
    '"',
    "\\",
    "/",
    "日本",
    "日本語",
    "\U0001f600",
]


async def test_pages_list_what_begins_with_a_prefix(carts: Carts) -> None:
    """Each key once, in the order of its UTF-8 bytes, and literally: no letter of a key means anything else."""
    await carts.state.write([carts.put(key, key) for key in ODD_KEYS], timeout_s=T_S)
    for prefix in ["", "a", "a\x00", "aä", "a\uffff", "a\U0010ffff", "日本", "%", "_", "nothing"]:
        expected = sorted((key for key in ODD_KEYS if key.startswith(prefix)), key=str.encode)
        for limit in (1, 4, 100):
            assert await carts.keys(prefix, limit) == expected, f"{limit} at a time of those with {prefix!r}"


async def test_a_page_may_go_on_after_a_key_that_is_gone(carts: Carts) -> None:
    """`after` names a place, not an entry; one before the prefix leaves nothing out."""
    await carts.state.write([carts.put(key, 1) for key in ("a", "b", "c")], timeout_s=T_S)
    await carts.delete("b")

    async def after(key: str, prefix: str = "") -> list[str]:
        page = await carts.state.page("carts", prefix=prefix, after=key, timeout_s=T_S)
        return [entry.key for entry in page]

    assert await after("b") == ["c"]
    assert await after("a", "c") == ["c"]
    assert await after("c", "a") == []


async def test_pages_of_large_values_are_read_to_the_end(carts: Carts) -> None:
    """An engine may cut a page at a number of bytes: only an empty one is behind the last."""
    for number in range(6):
        await carts.set(f"u{number}", b"x" * 600_000)
    keys, after = [], ""
    while page := await carts.state.page("carts", after=after, limit=100, timeout_s=T_S):
        keys += [entry.key for entry in page]
        after = page[-1].key
    assert keys == [f"u{number}" for number in range(6)]


async def test_pages_have_whole_entries(carts: Carts) -> None:
    """Value, etag and end are those that `get` tells."""
    await carts.set("u1", {"a": 1}, ttl_s=60.0)
    assert await carts.state.page("carts", timeout_s=T_S) == [await carts.entry("u1")]


async def test_namespaces_are_apart(carts: Carts) -> None:
    """The same key in two is two entries; they are listed by name with how many keys they have."""
    users = Carts(carts.state, "users")
    await carts.set("u1", "cart")
    await users.state.write([users.put("u1", "user"), users.put("u2", "user")], timeout_s=T_S)
    assert [await carts.get("u1"), await users.get("u1")] == ["cart", "user"]
    assert await users.state.namespaces(timeout_s=T_S) == [("carts", 1), ("users", 2)]
    await carts.delete("u1")
    assert await users.state.namespaces(timeout_s=T_S) == [("users", 2)]
    assert await users.get("u1") == "user"


# --- limits, and what outlives a restart --------------------------------------------------------------------


async def test_keys_and_namespaces_may_be_as_long_as_they_say(carts: Carts) -> None:
    """The longest are kept, in bytes of UTF-8; longer ones and empty ones are refused."""
    longest = "ä" * (MAX_KEY // 2)
    space = Carts(carts.state, "n" * MAX_NAMESPACE)
    await space.set(longest, 1)
    assert await space.keys() == [longest]
    for namespace, key in [("carts", longest + "x"), ("carts", ""), (space.namespace + "n", "u1"), ("", "u1")]:
        with pytest.raises(BadRequest):
            await Carts(carts.state, namespace).set(key, 1)


@over_processes
async def test_what_was_confirmed_outlives_a_restart(rig: Rig, carts: Carts) -> None:
    """Values, versions, ends and numbers, after kill -9 of whatever keeps them."""
    await carts.set("u1", "kept", ttl_s=60.0)
    await carts.set("u2", "gone")
    await carts.delete("u2")
    await carts.add("n", 3)
    before = await carts.state.page("carts", timeout_s=T_S)
    await rig.restart()
    assert await carts.state.page("carts", timeout_s=T_S) == before
    assert await carts.add("n", 1) == 4
    with pytest.raises(Conflict):
        await carts.set("u1", 1, etag="")

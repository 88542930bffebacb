"""Locks: what every engine promises of named leases and their numbers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_rig import T_S, Rig, over_processes

from mesh.errors import LockLost, LockTaken
from mesh.locks.contract import Grant, Locks

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("locks",)


class Door:
    """One lock, as one process has it."""

    def __init__(self, rig: Rig, locks: Locks, name: str = "nightly") -> None:
        self.rig = rig
        self.locks = locks
        self.name = name

    async def acquire(self, owner: str, *, ttl_s: float = 30.0, wait_s: float = 0.0) -> Grant:
        return await self.locks.acquire(self.name, owner, ttl_s=ttl_s, wait_s=wait_s, timeout_s=T_S)

    async def waits(self, owner: str, *, ttl_s: float = 30.0, wait_s: float = 1000.0) -> asyncio.Task[Grant]:
        """Somebody who stands in the line now."""
        task = asyncio.create_task(self.acquire(owner, ttl_s=ttl_s, wait_s=wait_s))
        await self.rig.quiet()
        return task

    async def renew(self, owner: str, *, ttl_s: float = 30.0) -> Grant:
        return await self.locks.renew(self.name, owner, ttl_s=ttl_s, timeout_s=T_S)

    async def release(self, owner: str) -> bool:
        return await self.locks.release(self.name, owner, timeout_s=T_S)

    async def owner(self) -> str | None:
        return next((each.owner for each in await self.locks.locks(timeout_s=T_S) if each.name == self.name), None)


@pytest.fixture
async def door(rig: Rig) -> Door:
    engine = await rig.engine()
    return Door(rig, engine.locks)


async def ended(task: asyncio.Task[Any]) -> None:
    """Somebody who waits gives up."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- holding ------------------------------------------------------------------------------------------------


async def test_a_free_lock_is_granted(rig: Rig, door: Door) -> None:
    """The grant says whose it is, until when, and its number."""
    grant = await door.acquire("a", ttl_s=30.0)
    assert (grant.name, grant.owner) == ("nightly", "a")
    assert grant.token > 0
    assert grant.until_at == pytest.approx(rig.clock.wall() + 30.0, abs=2.0)
    assert await door.locks.locks(timeout_s=T_S) == [grant]


async def test_a_lock_has_one_owner(rig: Rig, door: Door) -> None:
    """Others are told at once who has it, from any process."""
    await door.acquire("a")
    for each in (door, Door(rig, (await rig.engine()).locks)):
        with pytest.raises(LockTaken) as refused:
            await each.acquire("b")
        assert refused.value.details["owner"] == "a"
    assert await door.owner() == "a"


async def test_locks_of_other_names_are_free(door: Door, rig: Rig) -> None:
    """A name is all that counts; what is held is listed by name."""
    await door.acquire("a")
    other = Door(rig, door.locks, "daily")
    await other.acquire("b")
    assert [each.name for each in await door.locks.locks(timeout_s=T_S)] == ["daily", "nightly"]


async def test_an_owner_that_asks_again_has_it_for_longer(rig: Rig, door: Door) -> None:
    """The same grant: a repeated question after a lost answer does not lock its asker out."""
    first = await door.acquire("a", ttl_s=30.0)
    await rig.pass_time(20.0)
    again = await door.acquire("a", ttl_s=30.0)
    assert again.token == first.token
    assert again.until_at == pytest.approx(first.until_at + 20.0, abs=1.0)
    with pytest.raises(LockTaken):
        await door.acquire("b")


async def test_asking_again_never_shortens_a_grant(door: Door) -> None:
    """Nobody else gets it before the instant that the owner was told."""
    first = await door.acquire("a", ttl_s=30.0)
    assert (await door.acquire("a", ttl_s=1.0)).until_at >= first.until_at
    assert (await door.renew("a", ttl_s=1.0)).until_at >= first.until_at


async def test_a_released_lock_is_free(door: Door) -> None:
    """Whether it was its owner's to release is told."""
    await door.acquire("a")
    assert await door.release("b") is False
    assert await door.owner() == "a"
    assert await door.release("a") is True
    assert await door.release("a") is False
    assert await door.owner() is None
    assert (await door.acquire("b")).owner == "b"


# --- time ---------------------------------------------------------------------------------------------------


async def test_a_grant_ends_when_its_time_is_over(rig: Rig, door: Door) -> None:
    """Whoever died with a lock keeps it no longer than it said; before, nobody else gets it."""
    await door.acquire("a", ttl_s=30.0)
    await rig.pass_time(29.0)
    with pytest.raises(LockTaken):
        await door.acquire("b")
    await rig.pass_time(1.01)
    assert await door.owner() is None
    assert (await door.acquire("b")).owner == "b"


async def test_a_renewed_grant_lives(rig: Rig, door: Door) -> None:
    """However long, as long as it is renewed in time; its number stays."""
    first = await door.acquire("a", ttl_s=30.0)
    for _ in range(10):
        await rig.pass_time(20.0)
        renewed = await door.renew("a", ttl_s=30.0)
        assert renewed.token == first.token
        assert renewed.until_at == pytest.approx(rig.clock.wall() + 30.0, abs=2.0)
    assert await door.owner() == "a"


async def test_what_is_over_cannot_be_renewed(rig: Rig, door: Door) -> None:
    """Also when nobody took it since: its owner stopped being sure."""
    await door.acquire("a", ttl_s=30.0)
    await rig.pass_time(30.01)
    with pytest.raises(LockLost):
        await door.renew("a")
    assert await door.release("a") is False


async def test_only_the_owner_renews(door: Door) -> None:
    """Not another, and not one that has released it."""
    await door.acquire("a")
    with pytest.raises(LockLost):
        await door.renew("b")
    await door.release("a")
    with pytest.raises(LockLost):
        await door.renew("a")
    await door.acquire("b")
    with pytest.raises(LockLost):
        await door.renew("a")
    assert await door.owner() == "b"


# --- waiting ------------------------------------------------------------------------------------------------


async def test_those_who_wait_are_served_in_order(rig: Rig, door: Door) -> None:
    """First come, first served, from whatever process; nobody passes by."""
    await door.acquire("a")
    doors = [door, Door(rig, (await rig.engine()).locks), Door(rig, (await rig.engine()).locks)]
    line = [await doors[number % 3].waits(f"w{number}") for number in range(6)]
    holder = "a"
    for number, waiter in enumerate(line):
        assert not waiter.done()
        assert await door.release(holder)
        holder = (await waiter).owner
        assert holder == f"w{number}"
        with pytest.raises(LockTaken):
            await door.acquire("late")
    assert await door.release(holder)
    assert await door.owner() is None


async def test_whoever_comes_now_stands_behind_those_who_wait(rig: Rig, door: Door) -> None:
    """Also in the moment of a release."""
    await door.acquire("a")
    first = await door.waits("first")
    released = door.release("a")
    late = door.acquire("late", wait_s=0.0)
    results = await asyncio.gather(released, late, return_exceptions=True)
    assert results[0] is True
    assert isinstance(results[1], LockTaken)
    assert (await first).owner == "first"


async def test_a_grant_that_ends_goes_to_who_waits(rig: Rig, door: Door) -> None:
    """Without anybody's doing; a renewal in the meantime makes them wait longer."""
    await door.acquire("a", ttl_s=30.0)
    waiter = await door.waits("b")
    await rig.pass_time(20.0)
    await door.renew("a", ttl_s=30.0)
    await rig.pass_time(20.0)
    assert not waiter.done()
    await rig.pass_time(10.5)
    assert (await waiter).owner == "b"


async def test_waiting_ends_after_its_time(rig: Rig, door: Door) -> None:
    """With the name of who had it; and who gave up does not get it later."""
    await door.acquire("a", ttl_s=100.0)
    waiter = await door.waits("b", wait_s=5.0)
    await rig.pass_time(4.5)
    assert not waiter.done()
    await rig.pass_time(1.0)
    with pytest.raises(LockTaken) as refused:
        await waiter
    assert refused.value.details["owner"] == "a"
    assert await door.release("a")
    await rig.quiet()
    assert await door.owner() is None


async def test_who_was_cancelled_does_not_get_it(rig: Rig, door: Door) -> None:
    """The next in the line does."""
    await door.acquire("a")
    gone, stays = await door.waits("gone"), await door.waits("stays")
    await ended(gone)
    await rig.quiet()
    assert await door.release("a")
    assert (await stays).owner == "stays"


async def test_who_is_cancelled_in_the_moment_of_the_grant_does_not_keep_it(rig: Rig, door: Door) -> None:
    """Nobody holds what nobody knows of."""
    await door.acquire("a")
    gone = await door.waits("gone")
    release = asyncio.create_task(door.release("a"))
    await asyncio.sleep(0)
    await ended(gone)
    await release

    async def free() -> bool:
        return await door.owner() is None

    if gone.cancelled():
        await rig.eventually(free, "the lock of a cancelled waiter is free")
    assert (await door.acquire("b", wait_s=5.0)).owner == "b"


async def test_the_time_of_a_grant_begins_with_it(rig: Rig, door: Door) -> None:
    """What somebody waited is not taken off its time to live."""
    await door.acquire("a", ttl_s=20.0)
    waiter = await door.waits("b", ttl_s=30.0)
    await rig.pass_time(20.5)
    grant = await waiter
    assert grant.until_at == pytest.approx(rig.clock.wall() + 30.0, abs=2.0)


# --- numbers ------------------------------------------------------------------------------------------------


async def test_every_grant_has_a_larger_number_than_those_before(rig: Rig, door: Door) -> None:
    """Whether the one before was released, ran out, or was waited for: what it guards can tell old from new."""
    tokens = [(await door.acquire("a", ttl_s=30.0)).token]
    waiter = await door.waits("b", ttl_s=30.0)
    await door.release("a")
    tokens.append((await waiter).token)
    await rig.pass_time(31.0)
    tokens.append((await door.acquire("c", ttl_s=30.0)).token)
    await door.release("c")
    # The same owner again is another grant, too.
    tokens.append((await door.acquire("c", ttl_s=30.0)).token)
    await rig.leap(90 * 86400.0)
    tokens.append((await door.acquire("a")).token)
    assert tokens == sorted(set(tokens))


async def test_numbers_go_on_after_a_restart(rig: Rig, door: Door) -> None:
    """A lock that was free at the time does not begin at 1 again."""
    before = []
    for owner in ("a", "b", "c"):
        before.append((await door.acquire(owner)).token)
        await door.release(owner)
    await rig.restart()
    assert (await door.acquire("d")).token > max(before)


@over_processes
async def test_a_lock_is_held_through_a_restart(rig: Rig, door: Door) -> None:
    """Its owner still has it, with the same number, and can renew and release it; nobody else gets it."""
    grant = await door.acquire("a", ttl_s=300.0)
    await rig.restart()
    with pytest.raises(LockTaken) as refused:
        await door.acquire("b")
    assert refused.value.details["owner"] == "a"
    assert (await door.renew("a", ttl_s=300.0)).token == grant.token
    assert await door.release("a")
    assert (await door.acquire("b")).token > grant.token


@over_processes
async def test_who_waits_through_a_restart_is_served(rig: Rig, door: Door) -> None:
    """The asker's own patience counts, not the life of a process that answers."""
    await door.acquire("a", ttl_s=300.0)
    waiter = await door.waits("b", wait_s=300.0)
    await rig.restart()
    assert await door.release("a")
    assert (await rig.soon(waiter)).owner == "b"

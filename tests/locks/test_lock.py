"""locks.lock: waiting for a lock, holding it, losing it, and giving it back."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from locks_bench import Bench, hang

from mesh.calls.context import CURRENT
from mesh.clock import settle
from mesh.errors import BadRequest, LockLost, LockTaken, SetupError, TryLater, Uncertain


class Call(msgspec.Struct):
    """As much of a call's context as a lock looks at."""

    deadline_at: float
    target: str = "orders.charge"
    caller: str = ""
    trace: str | None = None
    meta: dict[str, str] = {}


def failing(error: Exception) -> Any:
    async def fail() -> None:
        raise error

    return fail


# --- getting it -------------------------------------------------------------------------------------------


async def test_one_at_a_time(bench: Bench) -> None:
    """Who comes second waits until the first is done, and gets a larger token."""
    tokens: list[int] = []
    inside = 0

    async def work(lock: Any) -> None:
        nonlocal inside
        async with lock as held:
            assert inside == 0
            inside += 1
            tokens.append(held.token)
            await bench.clock.sleep(5)
            inside -= 1

    tasks = [asyncio.create_task(work(bench.lock())), asyncio.create_task(work(bench.other()))]
    await bench.clock.advance(11)
    await asyncio.gather(*tasks)
    assert tokens[0] < tokens[1]
    assert await bench.engine.locks(timeout_s=1) == [], "given back"


async def test_wait_0_tries_once(bench: Bench) -> None:
    """And says who has it."""
    async with bench.other():
        with pytest.raises(LockTaken, match="worker-2") as caught:
            async with bench.lock(wait=0):
                pytest.fail("it is held")
    assert caught.value.details["lock"] == "nightly"
    assert caught.value.details["owner"].startswith("worker-2")


async def test_wait_ends(bench: Bench) -> None:
    """After the time that was given, not before."""

    async def attempt() -> float:
        with pytest.raises(LockTaken, match=r"\b2 s\b"):
            async with bench.lock(wait="2s"):
                pytest.fail("it is held")
        return bench.clock.now()

    began_at = bench.clock.now()
    async with bench.other():
        trying = asyncio.create_task(attempt())
        await bench.clock.advance(1.9)
        assert not trying.done()
        await bench.clock.advance(0.2)
        assert await trying == pytest.approx(began_at + 2, abs=0.15)


async def test_waiting_has_no_end_when_nobody_says(bench: Bench) -> None:
    """Outside of any call: for as long as it takes, longer than one request may."""

    async def attempt() -> None:
        async with bench.lock():
            pass

    async with bench.other(ttl="1d"):
        trying = asyncio.create_task(attempt())
        await bench.clock.advance(1000)
        assert not trying.done()
    await bench.clock.advance(1)
    await trying


async def test_waiting_ends_with_the_call_that_is_answered(bench: Bench) -> None:
    """Nobody is there to hear of it later."""

    async def attempt() -> None:
        CURRENT.set(Call(deadline_at=bench.clock.now() + 3))
        with pytest.raises(LockTaken):
            async with bench.lock():
                pytest.fail("it is held")

    async with bench.other():
        trying = asyncio.create_task(attempt())
        await bench.clock.advance(2.9)
        assert not trying.done()
        await bench.clock.advance(0.3)
        assert trying.done()
    await trying


async def test_a_grant_that_took_long_is_renewed_before_the_body_begins(bench: Bench) -> None:
    """When it was granted is not known: only an answer to a new question says how long it lasts."""
    holding = bench.other(ttl="1d")
    await holding.__aenter__()

    async def attempt() -> None:
        async with bench.lock(ttl="6s"):
            await bench.clock.sleep(1)

    trying = asyncio.create_task(attempt())
    await bench.clock.advance(4)
    await holding.__aexit__(None, None, None)
    await bench.clock.advance(2)
    await trying
    assert bench.verbs() == ["acquire", "renew", "release"]


async def test_an_engine_that_is_away_is_an_error(bench: Bench) -> None:
    """And what it may have granted all the same is given back."""
    bench.mine.instead["acquire"] = failing(Uncertain("no answer"))
    with pytest.raises(Uncertain):
        async with bench.lock():
            pytest.fail("it is not held")
    assert bench.verbs() == ["acquire", "release"]


async def test_cancelled_while_it_waits(bench: Bench) -> None:
    """It is cancelled, and holds nothing afterwards."""

    async def attempt() -> None:
        async with bench.lock():
            pytest.fail("it is held")

    async with bench.other():
        trying = asyncio.create_task(attempt())
        await settle()
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
    await bench.clock.advance(1)
    assert await bench.engine.locks(timeout_s=1) == []


# --- holding it -------------------------------------------------------------------------------------------


async def test_it_is_renewed_while_it_is_held(bench: Bench) -> None:
    """Work may take far longer than the lock's own time."""
    async with bench.lock(ttl="3s") as held:
        await bench.clock.advance(60)
        assert not held.lost.is_set()
        with pytest.raises(LockTaken):
            await bench.other(wait=0).__aenter__()
    assert bench.verbs().count("renew") == 60


async def test_a_failed_renewal_is_tried_again(bench: Bench) -> None:
    """An engine that restarts costs nobody a lock."""
    async with bench.lock(ttl="6s") as held:
        bench.mine.instead["renew"] = failing(TryLater("restarting"))
        await bench.clock.advance(5.5)
        assert bench.verbs().count("renew") > 3
        bench.mine.instead.clear()
        await bench.clock.advance(20)
        assert not held.lost.is_set()
    assert bench.lost() == 0


async def body(bench: Bench, ended: list[str], **options: Any) -> None:
    """Hold the lock until something happens."""
    async with bench.lock(ttl="6s", **options) as held:
        try:
            await bench.clock.sleep(3600)
        except asyncio.CancelledError:
            ended.append("lost" if held.lost.is_set() else "cancelled")
            raise


async def test_a_refused_renewal_stops_the_body(bench: Bench) -> None:
    """Somebody else may have it: the body is cancelled at once, and LockLost comes out."""
    ended: list[str] = []
    running = asyncio.create_task(body(bench, ended))
    await settle()
    (grant,) = await bench.engine.locks(timeout_s=1)
    await bench.engine.release("nightly", grant.owner, timeout_s=1)
    await bench.clock.advance(2)
    assert ended == ["lost"]
    with pytest.raises(LockLost, match=f"token {grant.token}") as caught:
        await running
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert not running.cancelled()
    assert bench.lost() == 1
    assert "release" not in bench.verbs(), "what is not ours is not given back"


@pytest.mark.parametrize("how", ["refuses", "is silent"])
async def test_the_body_stops_before_anybody_else_can_have_it(bench: Bench, how: str) -> None:
    """Nothing was confirmed for the lock's time, by the own clock: whether the engine can be heard or not."""
    ended: list[str] = []
    running = asyncio.create_task(body(bench, ended))
    await settle()
    granted_at = bench.clock.now()
    bench.mine.instead["renew"] = hang if how == "is silent" else failing(TryLater("away"))
    await bench.clock.advance(5.9)
    assert ended == []
    await bench.clock.advance(0.1)
    assert ended == ["lost"]
    assert bench.clock.now() <= granted_at + 6.0
    with pytest.raises(LockLost):
        await running


async def test_a_body_that_swallows_its_cancellation_is_told_all_the_same(bench: Bench) -> None:
    """It may have done its work while others held the lock."""

    async def stubborn() -> None:
        async with bench.lock(ttl="6s"):
            bench.mine.instead["renew"] = failing(LockLost("gone"))
            try:
                await bench.clock.sleep(3600)
            except asyncio.CancelledError:
                pass
        pytest.fail("LockLost comes out")

    running = asyncio.create_task(stubborn())
    await bench.clock.advance(2)
    with pytest.raises(LockLost):
        await running
    assert running.cancelling() == 0, "the cancellation was the lock's own, and is over"


async def test_the_bodys_own_error_comes_out(bench: Bench) -> None:
    """With a note that the lock was lost as well."""

    async def failing_body() -> None:
        async with bench.lock(ttl="6s"):
            bench.mine.instead["renew"] = failing(LockLost("gone"))
            try:
                await bench.clock.sleep(3600)
            finally:
                raise ValueError("while cleaning up")

    running = asyncio.create_task(failing_body())
    await bench.clock.advance(2)
    with pytest.raises(ValueError, match="while cleaning up") as caught:
        await running
    assert "token" in caught.value.__notes__[0]


async def test_who_is_cancelled_from_outside_stays_cancelled(bench: Bench) -> None:
    """Even if the lock is lost in the same moment."""
    ended: list[str] = []
    running = asyncio.create_task(body(bench, ended))
    await settle()
    bench.mine.instead["renew"] = failing(LockLost("gone"))
    bench.clock.turn(2)
    running.cancel()
    await settle()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_it_is_lost_inside_of_a_timeout(bench: Bench) -> None:
    """Another canceller around it: each knows its own cancellation."""

    async def inside() -> str:
        async with asyncio.timeout(1000):
            try:
                async with bench.lock(ttl="6s"):
                    bench.mine.instead["renew"] = failing(LockLost("gone"))
                    await bench.clock.sleep(3600)
            except LockLost:
                await asyncio.sleep(0)
                return "lost"
        return "not lost"

    running = asyncio.create_task(inside())
    await bench.clock.advance(2)
    assert await running == "lost"


# --- giving it back ---------------------------------------------------------------------------------------


async def test_it_is_given_back_when_the_body_is_cancelled(bench: Bench) -> None:
    """Nobody has to wait for its time to pass."""
    ended: list[str] = []
    running = asyncio.create_task(bench_body_cancelled(bench, ended))
    await settle()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with bench.other(wait=0):
        pass


async def bench_body_cancelled(bench: Bench, ended: list[str]) -> None:
    async with bench.lock():
        await bench.clock.sleep(3600)


async def test_it_is_given_back_when_the_body_fails(bench: Bench) -> None:
    """And the error is the body's."""
    with pytest.raises(ZeroDivisionError):
        async with bench.lock():
            raise ZeroDivisionError
    async with bench.other(wait=0):
        pass


async def test_it_is_given_back_when_the_time_of_the_call_is_over(bench: Bench) -> None:
    """That is when most bodies are cut off: neither renewing nor giving back may be bound to that time."""
    around: list[Any] = []

    async def look() -> None:
        around.append(CURRENT.get())

    bench.mine.instead = {"renew": look, "release": look}

    async def handler() -> None:
        CURRENT.set(Call(deadline_at=bench.clock.now() + 5))
        async with bench.lock(ttl="6s"):
            await bench.clock.sleep(3600)

    running = asyncio.create_task(handler())
    await bench.clock.advance(5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert around == [None, None, None]
    async with bench.other(wait=0):
        pass


async def test_it_is_given_back_although_the_body_is_cancelled_twice(bench: Bench) -> None:
    """An impatient caller does not make everybody else wait."""
    answering = asyncio.Event()
    bench.mine.instead["release"] = answering.wait
    running = asyncio.create_task(body(bench, []))
    await settle()
    for _ in range(2):
        running.cancel()
        await settle()
    assert running.done()
    answering.set()
    await settle()
    async with bench.other(wait=0):
        pass


async def test_an_engine_that_is_away_does_not_fail_what_is_done(bench: Bench) -> None:
    """The lock ends by itself, and nothing goes on renewing it."""
    bench.mine.instead["release"] = failing(TryLater("away"))
    async with bench.lock(ttl="3s"):
        pass
    await bench.clock.advance(3.1)
    async with bench.other(wait=0):
        pass
    assert "renew" not in bench.verbs()


async def test_nothing_is_left_running(bench: Bench) -> None:
    """No task, whichever way it ended."""
    before = asyncio.all_tasks()
    async with bench.lock():
        await settle()
    ended: list[str] = []
    running = asyncio.create_task(body(bench, ended))
    await settle()
    bench.mine.instead["renew"] = failing(LockLost("gone"))
    await bench.clock.advance(2)
    with pytest.raises(LockLost):
        await running
    assert asyncio.all_tasks() == before


# --- the object -------------------------------------------------------------------------------------------


async def test_it_may_be_used_again_but_not_twice_at_once(bench: Bench) -> None:
    """Each body has an acquisition of its own, with an owner of its own."""
    lock = bench.lock()
    async with lock as one:
        with pytest.raises(SetupError, match=lock.name):
            await lock.__aenter__()
    async with lock as two:
        pass
    assert two.token > one.token
    assert two.owner != one.owner
    assert "token" in repr(two)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("", {}, "''"),
        ("a\nb", {}, r"'a\nb'"),
        (7, {}, "lock 7"),
        ("é" * 200, {}, "255"),
        ("x", {"ttl": "10"}, 'write "10s"'),
        ("x", {"ttl": 0.5}, "1s and 1d"),
        ("x", {"ttl": "2d"}, "ttl='2d'"),
        ("x", {"wait": -1}, "wait=-1"),
        ("x", {"wait": "soon"}, "wait='soon'"),
        ("x", {"wait": float("inf")}, "wait=inf"),
    ],
)
def test_nonsense_is_refused_where_it_is_written(bench: Bench, name: Any, options: dict[str, Any], words: str) -> None:
    """With the name of the lock and the mend."""
    with pytest.raises(BadRequest) as caught:
        bench.lock(name, **options)
    assert words in caught.value.message

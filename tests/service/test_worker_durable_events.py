"""Durable events of a whole mesh: at least once, in order of their key, for who was away, too."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

import mesh
from mesh.errors import BadArguments, TooLarge
from mesh.testing import ManualClock, Mesh, no_leaks

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


class Placed(msgspec.Struct):
    """The data of order.placed."""

    id: str
    n: int = 0


heard: list[object] = []


class Shop(mesh.Service):
    """Emits."""

    @mesh.rpc
    async def place(self, id: str) -> None:
        await self.emit("order.placed", Placed(id), key=id, durable=True)


class Audit(mesh.Service):
    """Hears from the log."""

    failing = 0
    slow = 0.0

    @mesh.on("order.*", durable=True, retries=2, backoff="1s")
    async def write(self, data: Placed, event: mesh.Event) -> None:
        if Audit.failing:
            Audit.failing -= 1
            raise ValueError("disk")
        if Audit.slow:
            await self.node.clock.sleep(Audit.slow)  # type: ignore[attr-defined]
        heard.append((data.id, data.n))
        context = mesh.current_task()
        assert context is not None
        assert (context.topic, context.event, context.offset) == (event.topic, event.id, event.offset)

    @mesh.on("order.*")
    async def plain(self, data: Placed) -> None:
        heard.append(("plain", data.id))


class Early(mesh.Service):
    """Begins with everything that is kept."""

    @mesh.on("order.#", durable=True, start="all")
    async def all(self, event: mesh.Event) -> None:
        heard.append(("all", event.data["id"], event.key, event.meta, event.publisher == "", event.offset > 0))


@pytest.fixture(autouse=True)
def fresh() -> None:
    heard.clear()
    Audit.failing, Audit.slow = 0, 0.0


async def test_a_durable_event_reaches_durable_and_plain_handlers_once():
    """Each by its own way."""
    async with Mesh(Shop, Audit, clock=ManualClock()) as m:
        await m.call("shop.place", "o1")
        await m.idle()
        assert sorted(heard, key=str) == [("o1", 0), ("plain", "o1")]


async def test_a_handler_that_was_away_catches_up():
    """Also one that joins for the first time, when it asks for all."""
    async with Mesh(Shop, Audit, clock=ManualClock()) as m:
        await m.drain(m.workers(Audit)[0])
        for n in range(5):
            await m.emit("order.placed", Placed("o1", n), key="o1", durable=True, meta={"a": "b"})
        assert heard == []
        await m.start_another(Audit)
        await m.idle()
        assert heard == [("o1", n) for n in range(5)]
        heard.clear()
        await m.start_another(Early)
        await m.idle()
        assert heard == [("all", "o1", "o1", {"a": "b"}, True, True)] * 5


async def test_events_of_one_key_come_one_after_the_other():
    """While those of other keys overtake; whatever fails in between."""
    async with Mesh(Audit, replicas={Audit: 2}, clock=ManualClock()) as m:
        Audit.slow = 1.0
        for n in range(3):
            for key in ("a", "b"):
                await m.emit("order.placed", Placed(key, n), key=key, durable=True)
        heard.clear()
        await m.advance(1.5)
        assert heard == [("a", 0), ("b", 0)]
        Audit.failing = 1
        await m.advance(10.0)
        for key in ("a", "b"):
            assert [one for one in heard if one[0] == key] == [(key, 0), (key, 1), (key, 2)]


async def test_an_event_that_always_fails_makes_way_for_the_next():
    """It is in the dead letters with the reason; so is one whose data does not fit."""
    async with Mesh(Audit, clock=ManualClock()) as m:
        Audit.failing = 3
        await m.emit("order.placed", Placed("o1", 1), key="o1", durable=True)
        await m.emit("order.placed", {"id": 7}, key="o1", durable=True)
        await m.emit("order.placed", Placed("o1", 2), key="o1", durable=True)
        await m.advance(5.0)
        assert [one for one in heard if one[0] != "plain"] == [("o1", 2)]
        # Of one millisecond, they may stand in either order.
        failed, wrong = sorted(await m.dead("audit.write"), key=lambda job: job.reason)
        assert (failed.reason, failed.error, failed.topic) == ("failed", "ValueError: disk", "order.placed")
        assert wrong.reason == "undecodable"
        assert "audit.write" in wrong.error


async def test_the_event_of_a_killed_worker_is_delivered_again():
    """To another instance, when its lease is over."""
    async with Mesh(Audit, clock=ManualClock()) as m:
        Audit.slow = 5.0
        await m.emit("order.placed", Placed("o1"), key="o1", durable=True)
        await m.advance(1.0)
        await m.faults.kill(Audit)
        Audit.slow = 0.0
        await m.start_another(Audit)
        await m.advance(15.0)
        assert [one for one in heard if one[0] != "plain"] == [("o1", 0)]


async def test_a_replay_delivers_again():
    """From an offset, to one subscription."""
    async with Mesh(Audit, clock=ManualClock()) as m:
        for n in range(3):
            await m.emit("order.placed", Placed("o1", n), durable=True)
        await m.idle()
        heard.clear()
        log = m.node.durable.engines.events
        second = (await log.read("order.*", timeout_s=1.0))[1]
        assert await log.replay("audit.write", offset=second.offset, timeout_s=1.0) == 2
        await m.idle()
        assert heard == [("o1", 1), ("o1", 2)]


async def test_topics_may_be_durable_by_configuration():
    """Then nobody needs to say so; `durable=False` says otherwise."""
    async with Mesh(Audit, clock=ManualClock(), settings={"events.durable": ["order.#"]}) as m:
        await m.emit("order.placed", Placed("o1"))
        await m.emit("order.placed", Placed("o2"), durable=False)
        await m.idle()
        assert [one for one in heard if one[0] != "plain"] == [("o1", 0)]


async def test_an_event_that_durable_handlers_miss_is_told_of_once(capsys):
    """For each topic; what goes wrong silently is found late."""
    async with Mesh(Audit, clock=ManualClock()) as m:
        for _ in range(3):
            await m.emit("order.placed", Placed("o1"))
        await m.emit("other", 1)
        await m.emit("order.lost", Placed("o1"), durable=False)
    told = capsys.readouterr().err
    assert told.count("event.not_durable") == 1
    assert "audit.write" in told
    assert heard == [("plain", "o1")] * 4


async def test_a_plain_listener_that_fails_does_not_fail_the_emitter(capsys):
    """The event is in the log: an error would have it emitted a second time."""

    class Deaf(mesh.Service):
        @mesh.on("order.*")
        async def hear(self) -> None:
            raise ValueError("deaf")

    async with Mesh(Audit, Deaf, clock=ManualClock()) as m:
        await m.emit("order.placed", Placed("o1"), durable=True)
        await m.idle()
        assert ("o1", 0) in heard
    assert "event.partly_delivered" in capsys.readouterr().err


async def test_what_cannot_be_emitted_is_refused_at_once():
    """Nothing of it is in the log."""
    async with Mesh(clock=ManualClock()) as m:
        with pytest.raises(mesh.BadRequest, match=r"'order\.\.placed'"):
            await m.emit("order..placed", 1, durable=True)
        with pytest.raises(BadArguments, match="object"):
            await m.emit("order.placed", object(), durable=True)
        with pytest.raises(TooLarge, match=r"order\.placed.*2,097,"):
            await m.emit("order.placed", b"x" * (2 * 2**20), durable=True)
        with pytest.raises(BadArguments, match=r"key .*2000"):
            await m.emit("order.placed", 1, key="k" * 2000, durable=True)
        assert await m.node.durable.engines.events.read("#", timeout_s=1.0) == []


# --- schedules --------------------------------------------------------------------------------------------


class Clockwork(mesh.Service):
    """Runs by the clock."""

    @mesh.cron("*/5 * * * *")
    async def five(self) -> None:
        heard.append(("five", mesh.current_task().meta["due"][-9:-1]))  # type: ignore[union-attr]

    @mesh.every("1m", once=True, missed="skip")
    async def minute(self) -> None:
        heard.append("minute")


async def test_a_schedule_fires_once_for_three_workers_through_the_death_of_two():
    """And goes on with the last one."""
    async with Mesh(Clockwork, replicas={Clockwork: 3}, clock=ManualClock()) as m:
        await m.advance(601.0)  # a hand-turned clock begins at 22:30
        assert [one for one in heard if one != "minute"] == [("five", "22:35:00"), ("five", "22:40:00")]
        assert heard.count("minute") == 10
        await m.faults.kill(Clockwork)
        await m.faults.kill(Clockwork)
        await m.advance(600.0)
        assert [one for one in heard if one != "minute"][2:] == [("five", "22:45:00"), ("five", "22:50:00")]
        assert heard.count("minute") == 20


async def test_a_scheduled_method_can_be_deferred_by_hand():
    """It is a task like others."""
    async with Mesh(Clockwork, clock=ManualClock()) as m:
        job = await m.defer(Clockwork.minute)
        await job.result()
        assert heard == ["minute"]

"""What callers do about a service that is slow, fails, or is overloaded: with real workers, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import mesh
from mesh.calls.intercepting import InterceptedClient
from mesh.config.policies import PolicySettings
from mesh.errors import (
    BadArguments,
    CircuitOpen,
    DeadlineExceeded,
    MeshError,
    Overloaded,
    RemoteError,
    TryLater,
)
from mesh.service.decorators import marks_of
from mesh.testing import Mesh
from tests.patience import until
from tests.resilience.sick_services import Declares, Sick


@pytest.fixture(autouse=True)
def _cleared() -> Iterator[None]:
    Sick.clear()
    Declares.failing = 0
    yield
    Sick.gate.set()


def sick(policy: dict[str, Any], method: str = "*", replicas: int = 1, **more: Any) -> Mesh:
    return Mesh(Sick, replicas={Sick: replicas}, settings={"policies": {f"sick.{method}": policy}}, **more)


def count(m: Mesh, name: str, target: str) -> float:
    return m.node.recorder.counter(f"policy_{name}", target=target).value


async def failing(m: Mesh, target: str, *args: Any) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await m.call(target, *args)
    return caught.value


# --- retries ----------------------------------------------------------------------------------------------


async def test_what_may_pass_is_tried_again():
    async with sick({"retries": 2, "backoff": "1ms"}) as m:
        Sick.errors = [TryLater("1"), TryLater("2")]
        assert await m.call("sick.once", "x") == "x"
        assert (Sick.calls, count(m, "retries", "sick.once")) == (3, 2)
        Sick.errors = [TryLater(str(number)) for number in range(5)]
        assert (await failing(m, "sick.once")).code == "try_later"
        assert Sick.calls == 6


async def test_what_cannot_pass_is_not_tried_again():
    async with sick({"retries": 2, "backoff": "1ms"}) as m:
        Sick.errors = [BadArguments("no")]
        assert (await failing(m, "sick.safe")).code == "bad_arguments"
        Sick.errors = [ValueError("a bug")]
        assert isinstance(await failing(m, "sick.safe"), RemoteError)
        assert Sick.calls == 2


async def test_listed_codes_are_tried_again():
    async with sick({"retries": 2, "backoff": "1ms", "retry_on": ["handler_error"]}) as m:
        Sick.errors = [ValueError("a bug")]
        assert await m.call("sick.safe", 1) == 1
        Sick.errors = [TryLater("not listed")]
        await failing(m, "sick.safe")
        assert Sick.calls == 3


async def test_an_attempt_that_takes_too_long_is_repeated_only_where_that_is_safe():
    async with sick({"retries": 1, "backoff": "1ms", "attempt_timeout": "50ms"}) as m:
        waiting = m.call("sick.waits", 1)
        await until(lambda: Sick.calls == 2)
        Sick.gate.set()
        assert await waiting == [1, 0]
        assert Sick.cancelled == 1


async def test_retries_end_with_the_budget_of_the_process():
    settings = {
        "policies": {"sick.*": {"retries": 5, "backoff": "1ms"}},
        "calls": {"retry_ratio": 0.0, "retry_reserve": 0},
    }
    async with Mesh(Sick, settings=settings) as m:
        Sick.errors = [TryLater("1")]
        await failing(m, "sick.safe")
        assert (Sick.calls, count(m, "retries_refused", "sick.safe")) == (1, 1)


async def test_no_retry_begins_after_the_deadline():
    async with sick({"retries": 10, "backoff": "30s"}) as m:
        Sick.errors = [TryLater("1")]
        assert (await failing(m, "sick.safe")).code == "try_later"
        assert Sick.calls == 1


# --- time -------------------------------------------------------------------------------------------------


async def test_the_timeout_of_a_method_and_of_a_call():
    async with sick({"timeout": "50ms"}) as m:
        with pytest.raises(DeadlineExceeded):
            await m.call("sick.waits")
        call = m.call("sick.waits", timeout=20.0)
        await until(lambda: Sick.calls == 2)
        await asyncio.sleep(0.1)
        Sick.gate.set()
        assert await call == [None, 0]


# --- the breaker ------------------------------------------------------------------------------------------

BREAKER = {"breaker": 0.5, "breaker_minimum": 4, "breaker_open": "100ms", "breaker_probes": 1}


async def test_a_breaker_stops_calls_and_tries_again():
    async with sick(BREAKER) as m:
        Sick.errors = [ValueError(str(number)) for number in range(4)]
        for _ in range(4):
            await failing(m, "sick.once")
        refused = await failing(m, "sick.once")
        assert (type(refused), refused.status, refused.retryable, Sick.calls) == (CircuitOpen, 503, True, 4)
        assert 0 < refused.details["retry_after_s"] <= 0.1
        assert await m.call("sick.safe", 1) == 1  # each method has a breaker of its own
        await asyncio.sleep(0.11)
        assert await m.call("sick.once", 2) == 2
        assert await m.call("sick.once", 3) == 3


async def test_the_mistakes_of_callers_do_not_open_a_breaker():
    async with sick(BREAKER) as m:
        Sick.errors = [BadArguments(str(number)) for number in range(10)]
        for _ in range(10):
            await failing(m, "sick.once")
        assert await m.call("sick.once", 1) == 1


async def test_slow_calls_open_a_breaker():
    async with sick({**BREAKER, "breaker": 1.0, "breaker_slow": 0.5, "breaker_slow_after": "20ms"}) as m:
        calls = [m.call("sick.waits") for _ in range(4)]
        await until(lambda: Sick.calls == 4)
        await asyncio.sleep(0.03)
        Sick.gate.set()
        await asyncio.gather(*calls)
        assert isinstance(await failing(m, "sick.waits"), CircuitOpen)


async def test_a_retry_does_not_pass_an_open_breaker():
    async with sick({**BREAKER, "breaker_open": "20s", "retries": 3, "backoff": "1ms"}) as m:
        Sick.errors = [TryLater(str(number)) for number in range(20)]
        assert (await failing(m, "sick.once")).code == "try_later"
        retried = count(m, "retries", "sick.once")
        assert isinstance(await failing(m, "sick.once"), CircuitOpen)
        assert (Sick.calls, count(m, "retries", "sick.once")) == (4, retried)


# --- bulkhead ---------------------------------------------------------------------------------------------


async def test_a_bulkhead_admits_so_many_lets_some_wait_and_refuses_the_rest():
    async with sick({"bulkhead": 2, "bulkhead_queue": 1}) as m:
        calls = [asyncio.ensure_future(m.call("sick.waits", number)) for number in range(4)]
        await until(calls[3].done)
        assert isinstance(calls[3].exception(), Overloaded)
        await until(lambda: Sick.calls == 2)
        Sick.gate.set()
        assert [await call for call in calls[:3]] == [[0, 0], [1, 0], [2, 0]]
        assert await m.call("sick.waits", 9) == [9, 0]  # all places are free again
        assert count(m, "bulkhead_refused", "sick.waits") == 1


async def test_who_waits_for_a_place_may_leave_or_run_out_of_time():
    async with sick({"bulkhead": 1, "bulkhead_queue": 2}) as m:
        first = m.call("sick.waits", 0)
        await until(lambda: Sick.calls == 1)
        late, left = m.call("sick.waits", 1, timeout=0.05), asyncio.ensure_future(m.call("sick.waits", 2))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        with pytest.raises(DeadlineExceeded):
            await late
        Sick.gate.set()
        assert await first == [0, 0]
        assert await m.call("sick.waits", 3) == [3, 0]
        assert Sick.calls == 2


# --- hedging ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"attempt_timeout": "15s", "retries": 1}])
async def test_a_slow_instance_is_hedged_by_another_one(more: dict[str, Any]):
    async with sick({"hedge": "20ms", **more}, replicas=2) as m:
        Sick.slow = {0}
        answers = await asyncio.gather(*(m.call("sick.waits", number) for number in range(20)))
        assert [number for number, _ in answers] == list(range(20))
        assert {instance for _, instance in answers} == {1}
        sent = count(m, "hedges", "sick.waits")
        assert sent > 0
        assert count(m, "hedges_won", "sick.waits") == sent
        await until(lambda: Sick.cancelled == sent)  # the slow handlers were stopped


async def test_a_hedged_call_fails_only_when_both_fail():
    async with sick({"hedge": "10ms"}, replicas=2) as m:

        async def both(first: Exception | None, second: Exception | None) -> Any:
            Sick.clear()
            call = asyncio.ensure_future(m.call("sick.waits_then", 1))
            await until(lambda: Sick.calls == 2)
            Sick.errors = [first, second]
            Sick.gate.set()
            return (await asyncio.gather(call, return_exceptions=True))[0]

        assert await both(None, None) == 1
        assert await both(TryLater("1"), None) == 1
        assert await both(None, TryLater("2")) == 1
        assert isinstance(await both(TryLater("1"), TryLater("2")), TryLater)


async def test_hedging_needs_a_second_instance_and_an_idempotent_method():
    async with sick({"hedge": "10ms"}) as m:
        call = m.call("sick.waits")
        await asyncio.sleep(0.05)
        Sick.gate.set()
        await call
        assert (Sick.calls, count(m, "hedges", "sick.waits")) == (1, 0)


async def test_a_percentile_needs_calls_to_be_known():
    async with sick({"hedge": "p90"}, replicas=2) as m:
        Sick.slow = {7}
        for number in range(30):
            await m.call("sick.waits", number)
        Sick.slow = {0}
        answers = await asyncio.gather(*(m.call("sick.waits", number) for number in range(10)))
        assert {instance for _, instance in answers} == {1}


async def test_cancelling_a_hedged_call_stops_both():
    async with sick({"hedge": "10ms"}, replicas=2) as m:
        call = m.call("sick.waits")
        await until(lambda: Sick.calls == 2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: Sick.cancelled == 2)


# --- one answer for several -------------------------------------------------------------------------------


async def test_identical_calls_at_the_same_time_are_one():
    async with sick({"coalesce": True}) as m:
        calls = [m.call("sick.waits", 1) for _ in range(5)] + [m.call("sick.waits", 2)]
        await until(lambda: Sick.calls == 2)
        Sick.gate.set()
        answers = await asyncio.gather(*calls)
        assert answers == [[1, 0]] * 5 + [[2, 0]]
        assert answers[0] is not answers[1]  # each may change its own
        assert (Sick.calls, count(m, "coalesced", "sick.waits")) == (2, 4)


async def test_the_shared_call_lives_as_long_as_someone_waits_for_it():
    async with sick({"coalesce": True}) as m:
        calls = [asyncio.ensure_future(m.call("sick.waits", 1)) for _ in range(3)]
        await until(lambda: Sick.calls == 1)
        for call in calls[:2]:
            call.cancel()
        await asyncio.sleep(0.02)
        assert Sick.cancelled == 0
        calls[2].cancel()
        await until(lambda: Sick.cancelled == 1)
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_call_with_more_time_outlives_the_one_that_it_shared():
    async with sick({"coalesce": True}) as m:
        short, long = m.call("sick.waits", 1, timeout=0.05), m.call("sick.waits", 1, timeout=20.0)
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await short
        await until(lambda: Sick.calls == 2)
        Sick.gate.set()
        assert await long == [1, 0]


async def test_an_answer_is_kept_then_stale_then_asked_for_again():
    async with sick({"cache_for": "100ms", "cache_stale": "20s"}) as m:
        assert [await m.call("sick.who") for _ in range(3)] == [["", 1]] * 3
        await asyncio.sleep(0.11)
        assert await m.call("sick.who") == ["", 1]  # stale, while a call asks
        await until(lambda: Sick.calls == 2)
        await asyncio.sleep(0.02)
        assert await m.call("sick.who") == ["", 2]


async def test_an_answer_is_kept_for_the_one_who_asked():
    async with sick({"cache_for": "20s", "coalesce": True}) as m:
        with mesh.scope(principal="ann"):
            assert await m.call("sick.who") == ["ann", 1]
            assert await m.call("sick.who") == ["ann", 1]
        with mesh.scope(principal="bob"):
            assert await m.call("sick.who") == ["bob", 2]


async def test_errors_are_not_kept():
    async with sick({"cache_for": "20s"}) as m:
        Sick.errors = [TryLater("1")]
        await failing(m, "sick.once", 1)
        assert await m.call("sick.once", 1) == 1


# --- fallback, order, declarations ------------------------------------------------------------------------


async def test_a_fallback_answers_what_fails_but_not_what_is_wrong():
    async with sick({"fallback": {"items": []}}) as m:
        Sick.errors = [TryLater("1")]
        assert await m.call("sick.once") == {"items": []}
        Sick.errors = [BadArguments("no")]
        assert (await failing(m, "sick.once")).code == "bad_arguments"
        assert count(m, "fallbacks", "sick.once") == 1


async def test_a_method_declares_its_policy_and_callers_learn_it():
    async with Mesh(Declares) as m:
        Declares.failing = 2
        assert await m.call("declares.flaky") == "done"


async def test_what_a_method_declares_applies_while_it_has_no_instance():
    async with Mesh(Declares) as m:
        assert await m.call("declares.flaky") == "done"
        hooks = m.node.policies.hooks("declares.flaky")
        await m.faults.kill(Declares)
        await until(lambda: not m.node.table.instances("declares"))
        assert m.node.policies.of("declares.flaky").retries == 2
        assert m.node.policies.hooks("declares.flaky") is hooks  # with the state that they have


async def test_a_record_with_values_that_cannot_be_is_refused_and_calls_go_on():
    """Another process may register anything."""
    absurd = PolicySettings(retries=10**9, backoff_s=-1.0, hedge="soon", breaker=-5.0, bulkhead=0)

    class Absurd(mesh.Service):
        @mesh.rpc
        async def one(self) -> int:
            return 1

        @mesh.rpc
        async def two(self) -> int:
            return 2

    for method in (Absurd.one, Absurd.two):
        marks = marks_of(method)
        assert marks is not None
        marks.rpc = msgspec.structs.replace(marks.rpc, policy=absurd)
    async with Mesh(Absurd, settings={"policies": {"absurd.two": {"bulkhead": 3}}}) as m:
        assert [await m.call("absurd.one"), await m.call("absurd.two")] == [1, 2]
        assert m.node.policies is not None
        assert [len(m.node.policies.hooks(f"absurd.{each}")) for each in ("one", "two")] == [0, 1]


async def test_mesh_toml_has_the_last_word():
    async with Mesh(Declares, settings={"policies": {"declares.*": {"retries": 0}}}) as m:
        Declares.failing = 1
        assert (await failing(m, "declares.flaky")).code == "try_later"
        policy = m.node.policies.of("declares.flaky")
        assert (policy.retries, policy.backoff_s) == (0, 0.001)


async def test_calls_to_other_methods_and_streams_are_as_before():
    async with Mesh(Sick, settings={"policies": {"other.*": {"retries": 2}}}) as m:
        assert isinstance(m.node._calls, InterceptedClient)
        assert m.node.policies.hooks("sick.once") == ()
        Sick.errors = [TryLater("1")]
        await failing(m, "sick.once")


async def test_without_any_policy_the_client_itself_is_used():
    async with Mesh(Sick) as m:
        await m.call("sick.once")
        assert m.node._calls is m.node.client


async def test_interceptors_are_outside_of_policies():
    seen = []

    class Noting(mesh.Interceptor):
        async def outgoing(self, call: mesh.OutgoingCall, proceed: Any) -> Any:
            seen.append(call.target)
            return await proceed(call)

    async with sick({"retries": 2, "backoff": "1ms"}, interceptors=[Noting()]) as m:
        Sick.errors = [TryLater("1")]
        assert await m.call("sick.once", 1) == 1
        assert (seen, Sick.calls) == (["sick.once"], 2)

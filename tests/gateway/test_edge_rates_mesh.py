"""Limits over several gateways: exact under load, shares while an owner is silent, and counts that move."""

from __future__ import annotations

import asyncio
import signal
import time

from edge_rates_fleet import fleet

from tests.patience import PATIENCE_S


async def test_three_gateways_admit_exactly_the_limit():
    """180 concurrent requests of each of six callers, in any order, to all gateways."""
    async with fleet(3) as gates:
        callers = [gates.callers_of(gate, 2) for gate in gates.gates]
        names = [name for pair in callers for name in pair]
        admitted = await asyncio.gather(*(gates.flood("/fifty", name, 60) for name in names))
        assert [sum(each) for each in admitted] == [50] * len(names)
        # What one gateway has refused for another one it refuses by itself from then on.
        asked = await gates.gates[0].metric("mesh_requests_total")
        assert await gates.flood("/fifty", callers[1][0], 50, gates.gates[:1]) == [0]
        assert await gates.gates[0].metric("mesh_requests_total") - asked <= 52


async def test_no_second_has_more_than_the_limit():
    # On a busy machine an owner may take longer to answer; it must not be taken for dead.
    async with fleet(3, ASK_S="30") as gates:
        admitted: list[tuple[float, float]] = []
        until = time.monotonic() + 2.5

        async def send(number: int) -> None:
            gate = gates.gates[number % 3]
            while (sent := time.monotonic()) < until:
                if await gate.get("/quick", "alice") == 200:
                    admitted.append((sent, time.monotonic()))
                await asyncio.sleep(0.005)

        await asyncio.gather(*(send(number) for number in range(12)))
        # A request is admitted between the two instants: those that are both in one second are certainly of it.
        for begin, _ in admitted:
            assert sum(begin <= sent and told < begin + 1 for sent, told in admitted) <= 20
        took = max(told for _, told in admitted) - min(sent for sent, _ in admitted)
        assert 20 <= len(admitted) <= 20 * (int(took) + 1)


async def test_while_an_owner_is_dead_each_gateway_admits_its_share():
    # A long lease: the registry does not remove the dead gateway during the test.
    async with fleet(3, **{"discovery.lease": "60s"}) as gates:
        dead, *others = gates.gates
        (caller,) = gates.callers_of(dead, 1)
        (another,) = gates.callers_of(others[0], 1)
        await dead.end(signal.SIGKILL)
        assert await gates.flood("/nine", caller, 10, others) == [3, 3]
        assert await gates.flood("/nine", caller, 10, others) == [0, 0]
        assert sum(await gates.flood("/nine", another, 10, others)) == 9
        assert await others[0].metric("mesh_http_rate_owner_unanswered_total") >= 1


async def test_the_next_owner_of_a_dead_one_counts_what_was_admitted_meanwhile():
    async with fleet(3, **{"discovery.lease": "2s", "discovery.renew": "200ms"}) as gates:
        dead, *others = gates.gates
        (caller,) = gates.callers_of(dead, 1)
        await dead.end(signal.SIGKILL)
        # Each has a share of 3, of which it uses 2.
        assert await gates.flood("/nine", caller, 2, others) == [2, 2]
        gates.gates = others
        await gates.until_known(2)
        heir, other = others if caller in gates.callers_of(others[0], 1000) else others[::-1]
        async with asyncio.timeout(PATIENCE_S):
            while await other.metric("mesh_requests_total", 'method="$join_rates"') < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await heir.metric("mesh_http_rate_limit_keys") == 1
        assert sum(await gates.flood("/nine", caller, 10)) == 5


async def test_an_owner_that_hangs_delays_few_requests():
    async with fleet(2, **{"discovery.lease": "60s"}) as gates:
        silent, other = gates.gates
        (caller,) = gates.callers_of(silent, 1)
        silent.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            found = [await other.get("/nine", caller) for _ in range(20)]
            # One request a second has waited for the owner, the others have not.
            asked = await other.metric("mesh_requests_total", 'method="$decide_rates"')
            assert 1 <= asked <= 2 + (time.monotonic() - began)
            share = found.count(200)
            assert share in (4, 5)
        finally:
            silent.process.send_signal(signal.SIGCONT)
        # It answers again, and counts what the other one has admitted as its share.
        polled = 0
        async with asyncio.timeout(PATIENCE_S):
            while await silent.metric("mesh_requests_total", 'method="$join_rates"') < 1:
                polled += await other.get("/nine", caller) == 200
                await asyncio.sleep(0.05)
        assert share + polled + sum(await gates.flood("/nine", caller, 10)) <= 9


async def test_the_counts_of_a_gateway_that_stops_move_to_others():
    async with fleet(3) as gates:
        leaving, *others = gates.gates
        callers = gates.callers_of(leaving, 10)
        for caller in callers:
            assert await gates.flood("/nine", caller, 6, others[:1]) == [6]
        ended = asyncio.create_task(leaving.end(signal.SIGTERM))
        # While it leaves, too: nothing is admitted twice.
        during = [await gates.flood("/nine", caller, 1, others) for caller in callers]
        await ended
        after = [await gates.flood("/nine", caller, 10, others) for caller in callers]
        assert [sum(one) + sum(two) for one, two in zip(during, after, strict=True)] == [3] * len(callers)


async def test_the_counts_of_callers_move_to_a_new_gateway():
    async with fleet(2) as gates:
        callers = [f"caller-{number}" for number in range(30)]
        for caller in callers:
            assert sum(await gates.flood("/nine", caller, 3)) == 6
        await gates.start(1)
        new = gates.gates[-1]
        moved = sum(caller in gates.callers_of(new, 100) for caller in callers)
        assert moved > 3
        async with asyncio.timeout(PATIENCE_S):
            while await new.metric("mesh_http_rate_limit_keys") < moved:  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.01)
        assert [sum(await gates.flood("/nine", caller, 4)) for caller in callers] == [3] * len(callers)


async def test_each_gateway_counts_alone_when_the_scope_is_local():
    async with fleet(2, **{"gateway.limits.scope": "local"}) as gates:
        assert await gates.flood("/nine", "alice", 15) == [9, 9]

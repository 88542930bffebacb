"""The choice between two instances, as it is written out for every call, is the rule of policy.balance."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from mesh.calls.choosing import choose
from mesh.policy.balance import Ewma, call_cost, pick_two


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_it_chooses_as_the_policy_does(count: int):
    """Same numbers drawn, same instance: whatever is in flight, however slow each has been."""
    rng = random.Random(count)
    order = SimpleNamespace(instance=None, key=None, tried=None)
    for turn in range(500):
        handles = []
        for _ in range(count):
            latency = Ewma()
            latency.observe(rng.uniform(0.0001, 0.1), now=turn - rng.random())
            handles.append(SimpleNamespace(in_flight=rng.randrange(20), latency=latency))
        drawn = rng.random()
        ours = choose(order, handles, float(turn), lambda drawn=drawn: drawn)
        theirs = pick_two(
            lambda drawn=drawn: drawn,
            handles,
            lambda handle, now=float(turn): call_cost(handle.in_flight, handle.latency.value(now)),
        )
        assert ours is theirs


def test_a_newcomer_is_as_fast_as_the_one_beside_it():
    """What is in flight decides, so that it gets its first call, and not all of them."""
    order = SimpleNamespace(instance=None, key=None, tried=None)
    known = SimpleNamespace(in_flight=1, latency=Ewma())
    known.latency.observe(0.0001, now=10.0)
    new = SimpleNamespace(in_flight=0, latency=Ewma())
    assert choose(order, [known, new], 10.0, lambda: 0.3) is new
    new.in_flight = 2
    assert choose(order, [known, new], 10.0, lambda: 0.3) is known

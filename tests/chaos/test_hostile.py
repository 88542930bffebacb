"""The short form of tests/chaos/hostile.py and churn.py: the same tries against the same processes, fewer of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from .churn import come_and_go
from .hostile import Victims, assail, haunt, victims
from .hostile_peers import ATTACKS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


@pytest.fixture(scope="module", params=["ipc", "curve"])
def made(request: pytest.FixtureRequest) -> Iterator[Victims]:
    with victims(request.param) as made:
        yield made


@pytest.mark.parametrize("target", ["hub", "store", "worker", "gateway"])
def test_peers_that_send_and_read_nothing(made: Victims, target: str) -> None:
    """One of each kind at once: no process dies, its memory stays bounded, and no call of a neighbour fails."""
    how = [*ATTACKS.values()]
    found = asyncio.run(assail(made, target, how, tries=2 * len(how), seconds=1.2, at_once=len(how)))
    assert (found.deaths, found.failed) == (0, []), found.line()
    assert found.most_mb - found.before_mb < 700, found.line()


def test_a_gateway_that_dials_such_a_worker(made: Victims) -> None:
    """A worker that welcomes its callers, floods them and reads nothing."""
    if made.keyed:
        pytest.skip("the hostile worker has no key")
    found = asyncio.run(haunt(made, tries=2, seconds=1.2))
    assert (found.deaths, found.failed) == (0, []), found.line()


def test_short_lived_clients_leave_nothing_behind(made: Victims) -> None:
    """Hub and worker hold as much after some hundred more of them as before."""
    warm = come_and_go(made, 100)
    held = come_and_go(made, 200)
    for name in ("hub", "worker"):
        assert held[name] < warm[name] * 1.1 + 2.0, (name, warm, held)

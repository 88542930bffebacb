"""The network between hosts goes and comes back, under load."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from .host_network import Network
from .links_set import Answer, Site

LONG = os.environ.get("MESH_CHAOS") == "long"
MORE = [pytest.mark.chaos, pytest.mark.skipif(not LONG, reason="only with MESH_CHAOS=long")]
#: What was promised is 5 s; it has been less than a second, and an idle machine's second is a loaded one's three.
HEALED_S = 4.0
DEADLINE_S = 2.0
#: How long after its deadline a call may still be told of it: a slot of 5 ms, and a busy machine.
LATE_S = 0.5

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(180)]


@pytest.fixture
def site(network: Network) -> Iterator[Site]:
    """Three hosts, a hub on each; `shared` is on all of them, `lonely` on a."""
    site = Site(network, "abc")
    try:
        for name in site.hosts:
            site.start(name, "hub")
            site.start(name, "run", "links_services:Shared")
        site.start("a", "run", "links_services:Lonely")
        site.until_known({"shared": 3, "lonely": 1})
        yield site
    finally:
        site.close()


@pytest.mark.parametrize(
    ("cut_s", "method"),
    [
        (10.0, "where"),
        pytest.param(10.0, "take:1000000", marks=MORE),
        # As long as a link takes to notice; and so long that TCP alone would try again half a minute later.
        pytest.param(3.5, "where", marks=MORE),
        pytest.param(40.0, "where", marks=MORE),
    ],
)
def test_a_cut_costs_only_what_must_cross_it(network: Network, site: Site, cut_s: float, method: str):
    """b's cable is pulled and c's interface is switched off: what each can answer itself it goes on answering, what
    only a could answer fails within its deadline, and soon after healing all is well."""
    loads = {name: site.load(name, ["shared.where", f"lonely.{method}"], deadline_s=DEADLINE_S) for name in site.hosts}
    time.sleep(2)
    cut_at = time.monotonic()
    network.unplug("b")
    site.hosts["c"].run("ip", "link", "set", "eth0", "down")
    time.sleep(cut_s)
    healed_at = time.monotonic()
    network.plug("b")
    site.hosts["c"].run("ip", "link", "set", "eth0", "up")
    time.sleep(HEALED_S + 1)
    answers = {name: load.end() for name, load in loads.items()}
    target = "lonely." + method.partition(":")[0]

    def of(name: str, target: str) -> list[Answer]:
        found = [answer for answer in answers[name] if answer.target == target]
        assert len(found) > 100, f"{name} hardly called {target}: {len(found)}; {site.log(name)[-2000:]}"
        return found

    # What is on each host: every call, before, during and after.
    for name in site.hosts:
        told = of(name, "shared.where")
        assert not [answer for answer in told if answer.code], name
        # While another host is there, it may be asked when the own one is busy: this machine is, now and then.
        during = [answer for answer in told if cut_at < answer.began_at and answer.ended_at < healed_at]
        assert {answer.host for answer in during} == {name}
        assert sum(answer.host == name for answer in told) > 0.9 * len(told), name
        assert max(answer.took_s for answer in told) < DEADLINE_S
    assert not [answer for answer in of("a", target) if answer.code]
    # What is only on a, from b and c.
    for name in "bc":
        told = of(name, target)
        failed = [answer for answer in told if answer.code]
        assert failed, f"nothing of {name} crossed the cut"
        assert {answer.code for answer in failed} <= {"deadline_exceeded", "link_lost", "unavailable"}
        assert max(answer.took_s for answer in told) < DEADLINE_S + LATE_S
        assert min(answer.ended_at for answer in failed) > cut_at
        last = max(answer.ended_at for answer in failed)
        assert last < healed_at + HEALED_S, f"{name}: a call failed {last - healed_at:.1f} s after the cut was healed"
        first = min(answer.ended_at for answer in told if not answer.code and answer.ended_at > healed_at)
        assert first < healed_at + HEALED_S, f"{name}: no answer until {first - healed_at:.1f} s after healing"
        print(
            f"{name}: {len(failed)} of {len(told)} failed, the last {last - healed_at:+.2f} s after healing, ", end=""
        )
        print(f"first answer {first - healed_at:+.2f} s, longest {max(answer.took_s for answer in told):.2f} s")

"""A mesh over two hosts: everything that a service can do crosses, and what can stay at home does."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import pytest

from .host_network import Network
from .links_set import Answer, Site, end, until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(180)]


def by_target(answers: Iterable[Answer]) -> dict[str, Counter[str]]:
    """How often what came of the calls to each method; "" is an answer."""
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        told[answer.target][answer.code] += 1
    return told


@pytest.fixture(scope="module")
def site(network: Network) -> Iterator[Site]:
    """A hub on each of two hosts, the store on b; `shared` and `chores` on both, `lonely` on b. They listen on every
    address that they have, and tell each other the right one."""
    site = Site(network, "ab", bind="tcp://0.0.0.0:*")
    try:
        site.hub_of_a = site.start("a", "hub")
        site.start("b", "hub")
        for name in site.hosts:
            site.start(name, "run", "links_services:Shared", "links_services:Chores")
        site.start("b", "run", "links_services:Lonely")
        site.start("b", "store")
        site.until_known({"shared": 2, "chores": 2, "lonely": 1, "mesh-store": 1})
        yield site
    finally:
        site.close()


def test_calls_and_streams_stay_at_home_and_cross_when_they_must(site: Site):
    """What is on both hosts is answered here; what is on b only, there."""
    code = """
print({await n.call("shared.where") for _ in range(50)})
print([item async for item in n.stream("shared.count", 2)])
print(await n.call("lonely.where"), [item async for item in n.stream("lonely.count", 2)])
print(sorted(outcome.value for outcome in await n.scatter("shared.where")))
"""
    assert site.python("a", code).splitlines() == [
        "{'a'}",
        "['a 0', 'a 1']",
        "b ['b 0', 'b 1']",
        "['a', 'b']",
    ]


def test_a_gateway_asks_its_own_host_first(site: Site):
    """As any caller does."""
    gateway = site.start("a", "gateway")

    def get(service: str) -> str:
        url = f"http://127.0.0.1:8080/rpc/{service}/where"
        asked = f"r.Request({url!r}, b'{{}}', {{'Content-Type': 'application/json'}})"
        code = f"import urllib.request as r; print(r.urlopen({asked}).read().decode())"
        return site.hosts["a"].run(sys.executable, "-c", code).stdout.strip()

    try:
        until(lambda: get("lonely") == '"b"', "the gateway answers")
        assert {get("shared") for _ in range(10)} == {'"a"'}
    finally:
        end(gateway)


def test_events_cross(site: Site):
    """To every instance on both hosts; to one instance of each service: at home, and across where it must be."""
    site.python("a", 'await n.emit("news.x", "n1")\nawait n.emit("order.x", "o1")')
    until(lambda: "every n1" in site.heard("a"), "a heard it")
    until(lambda: site.heard("b").count("every n1") == 2, "both on b heard it")
    assert site.heard("a").count("one o1") == 1
    assert site.heard("b").count("one o1") == 1  # lonely's; that of shared was on a


def test_tasks_and_durable_events_cross(site: Site):
    """Deferred on a, kept on b, done on both; and a sees that they are done."""
    code = """
jobs = [await n.defer("chores.chore", number) for number in range(40)]
print(len({await job.result(timeout=20) for job in jobs}))
for number in range(10): await n.emit("bill.x", number, durable=True)
"""
    assert site.python("a", code).split() == ["2"]
    everywhere = lambda: site.heard("a") + site.heard("b")  # noqa: E731
    until(lambda: {f"durable {number}" for number in range(10)} <= set(everywhere()), "each durable event was heard")
    assert {f"task {number}" for number in range(40)} <= set(everywhere())


def test_a_hub_that_is_gone_is_not_missed(site: Site):
    """Calls go on; who comes now is found through the other host's; and the hub that comes back knows everybody."""
    load = site.load("a", ["shared.where", "lonely.where"])
    end(site.hub_of_a, signal.SIGKILL)
    newcomer = site.start("a", "run", "links_services:Narrow")
    for name in site.hosts:
        assert site.python(name, 'await n.wait_for("narrow", 10)\nprint(await n.call("narrow.where"))').strip() == "a"
    site.hub_of_a = site.start("a", "hub")
    site.until_known({"shared": 2, "lonely": 1, "narrow": 1})
    end(newcomer, signal.SIGTERM)
    answers = load.end()
    assert len(answers) > 100
    assert not [answer for answer in answers if answer.code]


def test_a_host_that_dies_takes_only_what_it_had(network: Network, site: Site):
    """All processes of b at once, the store among them, under load from a: what was in flight there is lost and said
    to be, and nothing else; back again, b and its data are as before."""
    load = site.load("a", ["lonely.where", "shared.where"])
    alike = site.load("a", ["shared.where", "shared.again"], local=False)
    code = """
jobs = [await n.defer("chores.chore", 100 + number) for number in range(20)]
print(*[job.id for job in jobs])
"""
    site.python("a", code)
    time.sleep(1)
    site.hosts["b"].kill()
    until(lambda: "b" not in site.python("a", 'print({one.host for one in n.instances("shared")})'), "a knows")
    assert site.python("a", 'print({await n.call("shared.where") for _ in range(20)})').strip() == "{'a'}"
    told = by_target(load.end())
    assert told["shared.where"].keys() == {""}
    # Each of the four callers has one call in flight at most.
    assert told["lonely.where"].keys() <= {"", "link_lost", "unavailable"}
    assert told["lonely.where"]["link_lost"] <= 4
    told = by_target(alike.end())
    assert told["shared.where"].keys() <= {"", "link_lost"}
    assert told["shared.where"]["link_lost"] <= 4
    assert told["shared.again"].keys() == {""}
    site.hosts["b"].start()
    for words in (
        ("hub",),
        ("store",),
        ("run", "links_services:Shared", "links_services:Chores"),
        ("run", "links_services:Lonely"),
    ):
        site.start("b", *words)
    site.until_known({"shared": 2, "chores": 2, "lonely": 1, "mesh-store": 1})
    done = {f"task {100 + number}" for number in range(20)}
    until(lambda: done <= set(site.heard("a") + site.heard("b")), "what was confirmed is done", 30)
    assert site.python("a", 'print(await n.call("lonely.where", timeout=10))').strip() == "b"

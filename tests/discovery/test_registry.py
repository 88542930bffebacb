"""Leases, and the news of them."""

from __future__ import annotations

import msgspec
import pytest

from mesh.discovery.admission import Limits, read_loads, read_news
from mesh.discovery.registry import Registry
from mesh.errors import Overloaded, ProtocolViolation


class Hub:
    """A registry that ticks as time is moved on."""

    def __init__(self, **options):
        self.now = 100.0
        self.registry = Registry(now=self.now, **options)

    def move(self, seconds, renewing=()):
        """Tick as the hub would, with `renewing` (peer, ids) renewed each second of it."""
        end = self.now + seconds
        second = 0.0
        while self.now < end - 1e-9:
            self.now += self.registry.tick_s
            second += self.registry.tick_s
            if renewing and second >= 1.0:
                second = 0.0
                peer, ids = renewing
                self.registry.renew(peer, [[key, 1, 0.0] for key in ids], self.now)
            self.registry.tick(self.now)

    def register(self, peer, *records):
        self.registry.register(peer, records, self.now)

    def renew(self, peer, *renewals):
        return self.registry.renew(peer, list(renewals), self.now)

    def listed(self):
        return [record.id for record in read_news(self.registry.snapshot(), "snapshot")]

    def news(self):
        """[(number, ids that came or changed, gone)] and "learned"; loads apart, as they were last told."""
        news = self.registry.take_news()
        self.loads = dict(read_loads(news.pop().loads)) if news and news[-1].loads else {}
        return [
            (item.number, "learned")
            if item.learned
            else (item.number, [record.id for record in read_news(item.records, "change")], item.gone)
            for item in news
        ]


@pytest.fixture
def hub():
    """One that has learned."""
    hub = Hub(lease_s=5.0, learn_s=0.0)
    hub.registry.tick(hub.now)
    hub.registry.take_news()
    hub.registry.number = 0
    return hub


def test_a_registration_is_listed_and_told(hub, make):
    """A snapshot has it, and so has the next news, with the next number."""
    hub.register("w1", make("a-1"), make("b-1"))
    assert hub.news() == [(1, ["a-1", "b-1"], [])]
    assert hub.listed() == ["a-1", "b-1"]
    assert hub.news() == []


def test_a_lease_runs_out(hub, make):
    """Not renewed for a lease: gone, and within one tick of it."""
    hub.register("w1", make("a-1"))
    hub.news()
    hub.move(4.75)
    assert hub.listed() == ["a-1"]
    hub.move(0.5)
    assert hub.listed() == []
    assert hub.news() == [(2, [], [["a-1", 1, "expired"]])]


def test_a_renewal_prolongs_the_lease(hub, make):
    """Renewed each second, it lives for ever; the rest of its peer's do not."""
    hub.register("w1", make("a-1"), make("a-2"))
    hub.move(20.0, renewing=("w1", ["a-1"]))
    assert hub.listed() == ["a-1"]


def test_a_renewal_of_an_unknown_instance_is_answered(hub, make):
    """Its holder is asked to register again, once per unknown id, and the known ones are renewed."""
    hub.register("w1", make("a-1"))
    assert hub.renew("w1", ["a-1", 1, 0.0], ["a-2", 1, 0.0]) == ["a-2"]


def test_a_peer_cannot_renew_what_another_holds(hub, make):
    """It has to register, and thereby takes it over."""
    hub.register("w1", make("a-1"))
    assert hub.renew("w2", ["a-1", 1, 0.0]) == ["a-1"]
    hub.register("w2", make("a-1"))
    assert hub.renew("w2", ["a-1", 1, 0.0]) == []
    assert hub.renew("w1", ["a-1", 1, 0.0]) == ["a-1"]


def test_a_renewal_of_a_later_epoch_is_unknown(hub, make):
    """The record that is listed is of another process."""
    hub.register("w1", make("a-1", epoch=1))
    assert hub.renew("w1", ["a-1", 2, 0.0]) == ["a-1"]


def test_the_later_epoch_wins(hub, make):
    """An earlier claim is passed over, and its renewals do not ask it to register in a circle."""
    hub.register("w2", make("a-1", epoch=2))
    hub.register("w1", make("a-1", epoch=1))
    assert hub.registry.get("a-1").epoch == 2
    assert hub.renew("w1", ["a-1", 1, 0.0]) == []
    assert hub.registry.counts.superseded == 1

    hub.news()
    hub.register("w3", make("a-1", epoch=3))
    assert hub.registry.get("a-1").epoch == 3
    assert hub.news() == [(2, ["a-1"], [])]


def test_a_goodbye_is_immediate(hub, make):
    """Leaving ends the lease now."""
    hub.register("w1", make("a-1"), make("a-2"))
    hub.news()
    hub.registry.leave("w1", [["a-1", 1]])
    assert hub.listed() == ["a-2"]
    assert hub.news() == [(2, [], [["a-1", 1, "left"]])]


def test_a_goodbye_by_another_peer_or_of_an_earlier_epoch_is_passed_over(hub, make):
    """Nobody takes others off the list."""
    hub.register("w1", make("a-1", epoch=2))
    hub.registry.leave("w2", [["a-1", 2]])
    hub.registry.leave("w1", [["a-1", 1], ["a-9", 1]])
    assert hub.listed() == ["a-1"]


def test_joining_and_leaving_between_two_news_is_told_as_gone(hub, make):
    """Only what is listed is told as having come."""
    hub.register("w1", make("a-1"))
    hub.registry.leave("w1", [["a-1", 1]])
    assert hub.news() == [(1, [], [["a-1", 1, "left"]])]


def test_coming_back_before_the_news_is_told_is_not_told_as_gone(hub, make):
    """An expiry that is mended within a turn of the loop was none."""
    hub.register("w1", make("a-1"))
    hub.news()
    hub.move(5.25)
    hub.register("w1", make("a-1"))
    assert hub.news() == [(2, ["a-1"], [])]


def test_changes_between_two_news_are_told_once(hub, make):
    """Many changes of one turn are one message with each record once."""
    for load in (0.2, 0.4, 0.6):
        hub.register("w1", make("a-1", load=load))
    hub.register("w1", make("a-2"))
    assert hub.news() == [(1, ["a-1", "a-2"], [])]


def test_registering_the_same_again_is_no_news(hub, make):
    """After a reconnect everybody registers again: nothing is broadcast, the lease is renewed."""
    hub.register("w1", make("a-1", load=0.3))
    hub.news()
    hub.move(3.0)
    hub.register("w1", make("a-1", load=0.35))
    assert hub.news() == []
    hub.move(3.0)
    assert hub.listed() == ["a-1"]


def test_a_changed_record_is_news(hub, make):
    """Registering again with something different is an update."""
    hub.register("w1", make("a-1"))
    hub.news()
    hub.register("w1", make("a-1", version="2"))
    assert hub.news() == [(2, ["a-1"], [])]
    assert hub.registry.get("a-1").version == "2"


def test_load_is_told_coarsely(hub, make):
    """A load that moves by a tenth or less since it was last told is not broadcast."""
    hub.register("w1", make("a-1"))
    hub.news()
    for load in (0.05, 0.1, 0.02):
        hub.renew("w1", ["a-1", 1, load])
        assert hub.news() == []
    hub.renew("w1", ["a-1", 1, 0.15])
    assert read_news(hub.registry.snapshot(), "snapshot")[0].load == 0.15
    hub.move(0.25)
    assert (hub.news(), hub.loads) == ([], {"a-1": 0.15})
    hub.renew("w1", ["a-1", 1, 0.2])
    hub.move(2.0)
    assert (hub.news(), hub.loads) == ([], {})


def test_loads_are_gathered_for_a_second(hub, make):
    """All that moved, once, as it is when it is told; nothing of those that went or were told with their record."""
    hub.register("w1", make("a-1"), make("a-2"), make("a-3"), make("a-4"))
    hub.news()
    hub.renew("w1", ["a-1", 1, 0.5])
    hub.move(0.25)
    hub.news()
    assert hub.loads == {"a-1": 0.5}
    hub.renew("w1", ["a-1", 1, 0.9], ["a-2", 1, 0.3], ["a-3", 1, 0.3], ["a-4", 1, 0.3])
    hub.move(0.5)
    assert (hub.news(), hub.loads) == ([], {})
    hub.renew("w1", ["a-1", 1, 0.2])
    hub.registry.leave("w1", [["a-2", 1]])
    hub.register("w1", make("a-3", version="2", load=0.3))
    hub.register("w1", make("a-4", load=0.6))
    assert hub.news() == [(2, ["a-3"], [["a-2", 1, "left"]])]
    hub.move(0.5)
    assert (hub.news(), hub.loads) == ([], {"a-1": 0.2, "a-4": 0.6})


def test_a_snapshot_shows_the_load_of_now(hub, make):
    """Also one that was encoded before, and with no news since."""
    hub.register("w1", make("a-1"))
    hub.news()
    hub.registry.snapshot()
    hub.renew("w1", ["a-1", 1, 0.5])
    assert read_news(hub.registry.snapshot(), "snapshot")[0].load == 0.5


def test_a_hub_that_starts_learns_before_it_declares_anybody_gone(make):
    """For `learn_s` nobody expires; then "learned" is told, and what expired meanwhile goes after it."""
    hub = Hub(lease_s=5.0, learn_s=8.0)
    hub.register("w1", make("a-1"))
    hub.move(7.5)
    assert hub.registry.learning
    assert hub.listed() == ["a-1"]
    assert hub.news() == [(1, ["a-1"], [])]
    hub.move(0.75)
    assert not hub.registry.learning
    assert hub.news() == [(2, [], [["a-1", 1, "expired"]]), (3, "learned")]


def test_learned_comes_after_what_registered_in_its_tick(make):
    """Who registers at the last moment is listed before absence means gone."""
    hub = Hub(lease_s=5.0)
    hub.move(4.75)
    hub.register("w1", make("a-1"))
    hub.move(0.25)
    assert hub.news() == [(1, ["a-1"], []), (2, "learned")]


def test_a_hub_that_was_deaf_declares_nobody_gone(hub, make):
    """A pause of the hub itself (a stopped process, a blocked loop) is not the fault of those who renewed."""
    hub.register("w1", make("a-1"))
    hub.now += 60.0
    hub.registry.tick(hub.now)
    assert hub.registry.learning
    assert hub.listed() == ["a-1"]
    hub.renew("w1", ["a-1", 1, 0.0])
    hub.move(4.75)
    assert hub.listed() == ["a-1"]
    hub.move(1.0)
    assert hub.listed() == []
    assert hub.registry.counts.deaf == 1


def test_expiry_follows_the_order_of_renewal(hub, make):
    """Whoever was renewed last goes last, whatever the order of registration."""
    hub.register("w1", make("a-1"), make("a-2"), make("a-3"))
    hub.move(1.0)
    hub.renew("w1", ["a-1", 1, 0.0])
    hub.move(1.0)
    hub.renew("w1", ["a-3", 1, 0.0])
    hub.news()
    hub.move(5.25)
    assert [item[2] for item in hub.news()] == [[["a-2", 1, "expired"], ["a-1", 1, "expired"], ["a-3", 1, "expired"]]]


@pytest.mark.parametrize(
    "renewal",
    [
        "abc",
        7,
        None,
        [],
        ["a-1", 1],
        ["a-1", 1, 0.0, 0],
        ["a-1", "1", 0.0],
        ["a-1", True, 0.0],
        ["a-1", 1, "0"],
        ["a-1", 1, None],
        ["a-1", 1, float("nan")],
        ["a-1", 1, -0.1],
        ["a-1", 1, 1e300],
        [b"a-1", 1, 0.0],
        [7, 1, 0.0],
        [["a-1"], 1, 0.0],
        [{}, 1, 0.0],
    ],
)
def test_a_malformed_renewal_is_a_violation(hub, make, renewal):
    """Whatever shape it has, it is refused by name."""
    hub.register("w1", make("a-1"))
    with pytest.raises(ProtocolViolation, match=r"^renew: "):
        hub.renew("w1", renewal)


@pytest.mark.parametrize("claim", ["ab", 7, None, [], ["a-1"], ["a-1", "1"], [7, 1], ["a-1", 1, 1], [["a-1"], 1]])
def test_a_malformed_goodbye_is_a_violation(hub, claim):
    """Whatever shape it has, it is refused by name."""
    with pytest.raises(ProtocolViolation, match=r"^leave: "):
        hub.registry.leave("w1", [claim])


def test_a_peer_may_hold_a_limited_number_of_records(make):
    """Past the limit nothing of the message is taken, and what it held stays."""
    hub = Hub(lease_s=5.0, limits=Limits(peer_records=3))
    hub.register("w1", make("a-1"), make("a-2"))
    with pytest.raises(ProtocolViolation, match=r"\b4\b.*\b3\b"):
        hub.register("w1", make("a-3"), make("a-4"))
    assert hub.listed() == ["a-1", "a-2"]
    hub.register("w2", make("b-1"))
    hub.register("w1", make("a-1"), make("a-2"), make("a-3"))
    for kind in (hub.renew, lambda peer, *claims: hub.registry.leave(peer, claims)):
        with pytest.raises(ProtocolViolation, match=r"\b4\b.*\b3\b"):
            kind("w1", *[["a-1", 1, 0.0]] * 4)


def test_a_peer_gets_room_back_when_its_records_go(make):
    """What expired, left or was taken over no longer counts."""
    hub = Hub(lease_s=5.0, learn_s=0.0, limits=Limits(peer_records=2))
    hub.register("w1", make("a-1"), make("a-2"))
    hub.registry.leave("w1", [["a-1", 1]])
    hub.register("w1", make("a-3"))
    hub.register("w2", make("a-3"))
    hub.register("w1", make("a-4"))
    hub.move(6.0)
    hub.register("w1", make("a-5"), make("a-6"))
    assert hub.listed() == ["a-5", "a-6"]


@pytest.mark.parametrize("limits", [Limits(hub_records=2), Limits(hub_bytes=60)])
def test_a_full_hub_says_so(make, limits):
    """Too many records, or too many bytes, are refused; what is held already may be renewed and registered again."""
    hub = Hub(lease_s=5.0, limits=limits)
    hub.register("w1", make("a-1"), make("a-2"))
    with pytest.raises(Overloaded):
        hub.register("w2", make("b-1"))
    hub.register("w1", make("a-1"), make("a-2"))
    assert hub.listed() == ["a-1", "a-2"]


def test_a_snapshot_is_encoded_once_for_many_watchers(hub, make):
    """Between two news it is the same bytes object."""
    hub.register("w1", make("a-1"))
    hub.registry.take_news()
    first = hub.registry.snapshot()
    assert hub.registry.snapshot() is first
    hub.register("w1", make("a-2"))
    hub.registry.take_news()
    assert len(msgspec.msgpack.decode(hub.registry.snapshot())) == 2


def test_a_large_departure_is_told_in_pieces(hub, make):
    """Readers bound the length of an array: thousands who go at once are several numbered changes."""
    for worker in range(5):
        hub.register(f"w{worker}", *[make(f"a-{worker}-{at}") for at in range(1000)])
    hub.news()
    hub.move(5.25)
    news = hub.news()
    assert [number for number, _, _ in news] == list(range(2, 2 + len(news)))
    assert all(len(gone) <= 1000 for _, _, gone in news)
    assert sum(len(gone) for _, _, gone in news) == 5000

"""Merging what several hubs say."""

from __future__ import annotations

import pytest

from mesh.discovery.table import Table
from mesh.errors import ProtocolViolation


@pytest.fixture
def table():
    return Table(grace_s=5.0)


def ids(records):
    return [record.id for record in records]


def gone(change):
    return [(record.id, reason) for record, reason in change.left]


def test_a_snapshot_makes_its_instances_known(table, make):
    """What a hub lists is here, by service and by id."""
    change = table.snapshot("h1", 1, 7, False, [make("a-1"), make("b-1"), make("a-2")])

    assert ids(change.joined) == ["a-1", "b-1", "a-2"]
    assert not change.left
    assert not change.updated
    assert table.services() == ["a", "b"]
    assert ids(table.instances("a")) == ["a-1", "a-2"]
    assert table.get("b-1") == make("b-1")
    assert len(table) == 3


def test_nothing_is_known_of_what_nobody_lists(table):
    """An unknown service has no instances, and was never known."""
    assert table.instances("a") == ()
    assert table.get("a-1") is None
    assert not table.known("a")
    assert not table.certain


def test_numbered_changes_follow_a_snapshot(table, make):
    """A change adds, updates and takes away."""
    table.snapshot("h1", 1, 7, False, [make("a-1"), make("a-2")])
    change = table.change("h1", 8, [make("a-2", load=0.5), make("a-3")], [["a-1", 1, "expired"]])

    assert ids(change.joined) == ["a-3"]
    assert ids(change.updated) == ["a-2"]
    assert gone(change) == [("a-1", "expired")]
    assert ids(table.instances("a")) == ["a-2", "a-3"]


def test_a_service_stays_known_when_its_last_instance_has_gone(table, make):
    """ "None just now" and "no such service" can be told apart."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    table.change("h1", 1, [], [["a-1", 1, "left"]])

    assert table.known("a")
    assert table.services() == []


def test_the_version_moves_with_every_change_and_with_nothing_else(table, make):
    """Who keeps something worked out from the table may compare versions."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    version = table.version
    table.snapshot("h2", 1, 0, False, [make("a-1")])
    table.hub_lost("h2")
    assert table.version == version
    table.change("h1", 1, [make("a-1", load=0.4)])
    assert table.version == version + 1


def test_a_gap_in_the_numbers_asks_for_a_snapshot(table, make):
    """A missed change is noticed; until the new snapshot nothing further is believed, and nothing is forgotten."""
    table.snapshot("h1", 1, 7, False, [make("a-1"), make("a-2")])

    assert table.change("h1", 9, [make("a-3")]) is None
    assert table.change("h1", 10, [make("a-4")]) is None
    assert table.learned("h1", 11) is None
    assert ids(table.instances("a")) == ["a-1", "a-2"]

    change = table.snapshot("h1", 1, 11, False, [make("a-1"), make("a-3")])
    assert ids(change.joined) == ["a-3"]
    assert gone(change) == [("a-2", "unlisted")]
    assert table.change("h1", 12, [make("a-4")])


def test_a_repeated_number_is_a_gap(table, make):
    """Numbers that stand still are no order either."""
    table.snapshot("h1", 1, 7, False, [])
    assert table.change("h1", 7, [make("a-1")]) is None


@pytest.mark.parametrize("say", ["change", "learned"])
def test_a_change_before_any_snapshot_is_a_violation(table, say):
    """A hub that speaks of changes before its snapshot breaks the protocol."""
    with pytest.raises(ProtocolViolation, match="snapshot"):
        table.change("h1", 1, []) if say == "change" else table.learned("h1", 1)


def test_a_lost_hub_leaves_its_last_view(table, make):
    """Stale is better than none."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    assert not table.hub_lost("h1", 10.0)
    assert not table.forget(1000.0)
    assert ids(table.instances("a")) == ["a-1"]
    assert not table.certain


def test_one_hub_that_lists_an_instance_is_enough(table, make):
    """A lease that ran out at one hub does not end what another lists."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    table.snapshot("h2", 1, 0, False, [make("a-1")])

    assert not table.change("h1", 1, [], [["a-1", 1, "expired"]])
    assert gone(table.change("h2", 1, [], [["a-1", 1, "expired"]])) == [("a-1", "expired")]


def test_a_hub_that_has_never_listed_an_instance_says_nothing_of_it(table, make):
    """A registration reaches hubs one after the other: that a second one is later is no contradiction."""
    table.snapshot("h2", 1, 0, False, [])
    assert ids(table.snapshot("h1", 1, 0, False, [make("a-1")]).joined) == ["a-1"]


def test_a_goodbye_is_believed_at_once_and_for_good(table, make):
    """A hub that missed the goodbye, or is late, cannot bring an instance back."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    table.snapshot("h2", 1, 0, False, [make("a-1")])
    table.snapshot("h3", 1, 0, False, [])

    assert gone(table.change("h1", 1, [], [["a-1", 1, "left"]], now=10.0)) == [("a-1", "left")]
    assert not table.change("h2", 1, [make("a-1", load=0.9)], now=10.1)
    assert not table.change("h3", 1, [make("a-1")], now=10.2)
    assert not table.snapshot("h2", 1, 5, False, [make("a-1")], now=11.0)


def test_a_goodbye_does_not_bar_a_later_epoch(table, make):
    """The id may be used again by a process that started later."""
    table.snapshot("h1", 1, 0, False, [make("a-1", epoch=3)])
    table.change("h1", 1, [], [["a-1", 3, "left"]])
    assert ids(table.change("h1", 2, [make("a-1", epoch=4)]).joined) == ["a-1"]


def test_goodbyes_are_forgotten_when_no_hub_can_repeat_the_instance(table, make):
    """What is remembered of the dead is bounded by time."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    table.change("h1", 1, [], [["a-1", 1, "left"]], now=10.0)
    table.forget(29.0)
    assert table._floors
    table.forget(31.0)
    assert not table._floors


def test_an_expired_instance_may_come_back_with_its_epoch(table, make):
    """A process that was stopped for a while lives on."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    table.change("h1", 1, [], [["a-1", 1, "expired"]])
    assert ids(table.change("h1", 2, [make("a-1")]).joined) == ["a-1"]


def test_what_goes_and_comes_within_one_change_has_not_moved(table, make):
    """Gone is read before came, and only the difference is told."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    assert not table.change("h1", 1, [make("a-1")], [["a-1", 1, "expired"]])
    assert len(table) == 1


def test_the_later_epoch_wins_whoever_says_it(table, make):
    """A later claim replaces an earlier one as a departure and an arrival; the earlier cannot return."""
    table.snapshot("h1", 1, 0, False, [make("a-1", epoch=1, endpoint="old")])
    change = table.snapshot("h2", 1, 0, False, [make("a-1", epoch=2, endpoint="new")])

    assert gone(change) == [("a-1", "superseded")]
    assert [record.endpoint for record in change.joined] == ["new"]
    assert not table.change("h1", 1, [make("a-1", epoch=1, endpoint="old", load=0.7)])
    assert table.get("a-1").endpoint == "new"


def test_the_earlier_epoch_is_ignored_when_it_is_heard_second(table, make):
    """The order in which hubs are heard does not matter."""
    table.snapshot("h2", 1, 0, False, [make("a-1", epoch=2)])
    assert not table.snapshot("h1", 1, 0, False, [make("a-1", epoch=1)])
    assert table.get("a-1").epoch == 2


def test_news_of_an_earlier_epochs_end_does_not_end_the_later(table, make):
    """The lease of the process that was replaced runs out behind its back."""
    table.snapshot("h1", 1, 0, False, [make("a-1", epoch=2)])
    assert not table.change("h1", 1, [], [["a-1", 1, "expired"]])
    assert not table.change("h1", 2, [], [["a-1", 1, "left"]])
    assert table.get("a-1").epoch == 2


def test_a_learning_hub_declares_nobody_gone(table, make):
    """After a hub's restart absence means nothing until it has learned; then it does."""
    table.snapshot("h1", 1, 9, False, [make("a-1"), make("a-2")])
    table.hub_lost("h1", 10.0)

    assert not table.snapshot("h1", 2, 0, True, [make("a-1")], 11.0)
    assert ids(table.instances("a")) == ["a-1", "a-2"]
    assert not table.certain

    change = table.learned("h1", 1, 16.0)
    assert gone(change) == [("a-2", "unlisted")]
    assert table.certain


def test_a_learning_hub_may_pass_on_a_goodbye(table, make):
    """Leaving needs no waiting."""
    table.snapshot("h1", 1, 0, True, [make("a-1")])
    assert gone(table.change("h1", 1, [], [["a-1", 1, "left"]])) == [("a-1", "left")]


def test_a_hub_that_returns_with_all_contradicts_its_stale_view(table, make):
    """A broken connection, no restart: the new snapshot says who went meanwhile."""
    table.snapshot("h1", 1, 3, False, [make("a-1"), make("a-2")])
    table.hub_lost("h1", 10.0)
    assert gone(table.snapshot("h1", 1, 9, False, [make("a-2")], 11.0)) == [("a-1", "unlisted")]


def test_another_hubs_word_ends_a_stale_claim(table, make):
    """A hub that knew the instance and says that it expired is believed over one that is away."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    table.snapshot("h2", 1, 0, False, [make("a-1")])
    table.hub_lost("h1", 10.0)
    assert gone(table.change("h2", 1, [], [["a-1", 1, "expired"]], now=11.0)) == [("a-1", "expired")]


def test_another_hubs_silence_ends_a_stale_claim_after_a_lease_only(table, make):
    """A new instance may be known to one hub a moment before the other: silence counts when it lasted a lease."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    table.snapshot("h2", 1, 0, False, [])
    table.hub_lost("h1", 10.0)

    assert not table.forget(14.9)
    assert ids(table.instances("a")) == ["a-1"]
    assert gone(table.forget(15.0)) == [("a-1", "unlisted")]


def test_silence_counts_from_when_the_other_hub_has_learned(table, make):
    """A hub that is itself new cannot contradict yet."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    table.hub_lost("h1", 10.0)
    table.snapshot("h2", 1, 0, True, [], 20.0)
    assert not table.forget(100.0)
    table.learned("h2", 1, 100.0)
    assert not table.forget(104.0)
    assert gone(table.forget(105.0)) == [("a-1", "unlisted")]


def test_forgetting_spares_what_another_hub_lists(table, make):
    """Only claims that no connected hub repeats are dropped."""
    table.snapshot("h1", 1, 0, False, [make("a-1"), make("a-2")])
    table.snapshot("h2", 1, 0, False, [make("a-2")])
    table.hub_lost("h1", 10.0)
    assert gone(table.forget(50.0)) == [("a-1", "unlisted")]
    assert ids(table.instances("a")) == ["a-2"]


def test_equal_records_of_several_hubs_are_no_update_and_one_object(table, make):
    """Three hubs cost one record in memory, and say one thing once."""
    first = make("a-1", meta={"zone": "x"})
    table.snapshot("h1", 1, 0, False, [first])
    assert not table.snapshot("h2", 1, 0, False, [make("a-1", meta={"zone": "x"})])
    assert table.view("h2").records["a-1"] is first


def test_the_latest_word_on_a_record_counts(table, make):
    """Of one epoch, what was heard last is shown, and stays when its hub is lost."""
    table.snapshot("h1", 1, 0, False, [make("a-1", load=0.1)])
    assert ids(table.snapshot("h2", 1, 0, False, [make("a-1", load=0.6)]).updated) == ["a-1"]
    assert not table.hub_lost("h2", 5.0)
    assert table.get("a-1").load == 0.6


def test_loads_change_the_records_that_their_hub_lists(table, make):
    """They come as updates; what several hubs say alike is said once, and of what is not listed nothing comes to be."""
    table.snapshot("h1", 1, 0, False, [make("a-1"), make("a-2")])
    table.snapshot("h2", 1, 0, False, [make("a-1")])
    version = table.version
    change = table.loads("h1", [("a-1", 0.5), ("a-2", 0.0), ("a-9", 0.5)])
    assert (ids(change.updated), change.only_loads, table.version) == (["a-1"], True, version)
    assert [record.load for record in table.instances("a")] == [0.5, 0.0]
    assert not table.loads("h2", [("a-1", 0.5), ("a-2", 0.7)])
    assert table.view("h2").records["a-1"] is table.view("h1").records["a-1"]
    assert table.get("a-2").load == 0.0


def test_of_two_hubs_the_one_heard_last_says_the_load(table, make):
    """Also when it says what it has always said."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    table.snapshot("h2", 1, 0, False, [make("a-1")])
    table.loads("h1", [("a-1", 0.9)])
    assert ids(table.loads("h2", [("a-1", 0.0)]).updated) == ["a-1"]
    assert table.get("a-1").load == 0.0


def test_loads_before_a_snapshot_are_a_violation(table):
    """As every news."""
    with pytest.raises(ProtocolViolation, match=r"\bloads\b.*\bsnapshot\b"):
        table.loads("h1", [("a-1", 0.9)])


def test_a_changed_service_moves_the_instance(table, make):
    """The index by service follows the record."""
    table.snapshot("h1", 1, 0, False, [make("a-1")])
    table.change("h1", 1, [make("a-1", service="b")])
    assert table.services() == ["b"]
    assert ids(table.instances("b")) == ["a-1"]


def test_the_tuple_of_a_service_is_made_once(table, make):
    """Choosing an instance on each call costs no list."""
    table.snapshot("h1", 1, 0, False, [make("a-1"), make("b-1")])
    before = table.instances("a")
    table.change("h1", 1, [make("b-1", load=0.5)])
    assert table.instances("a") is before
    table.change("h1", 2, [make("a-2")])
    assert ids(table.instances("a")) == ["a-1", "a-2"]

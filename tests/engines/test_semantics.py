"""The rules that all engines share, by themselves; the contract suites hold each engine to them."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from mesh.engines.capabilities import CAPABILITIES, KEY_OF, KEYS, REQUIRED, Capability, Key
from mesh.engines.semantics.acknowledgements import due_at, given_up, stale
from mesh.engines.semantics.lifecycle import EVENT_OF, LIFECYCLE, steps
from mesh.engines.semantics.offering import lacking, lacking_for
from mesh.engines.semantics.suspects import is_suspect, rank
from mesh.tasks.contract import OVER, PRIORITIES, NewTask, Queue, Settlement, Status, Verdict


def test_every_capability_has_a_key_and_every_key_a_capability() -> None:
    """The names of the types and of the tables are the same."""
    assert set(CAPABILITIES) == set(get_args(Capability)) == set(KEY_OF)
    assert set(KEYS) == set(get_args(Key)) == set(REQUIRED) == set(KEY_OF.values())


def test_the_lifecycle_is_whole() -> None:
    """Every status is reached; what is over stays so, unless it is dead and requeued; a verdict ends an attempt."""
    assert {"waiting", *LIFECYCLE.values()} == set(get_args(Status))
    assert {(before, event) for before, event in LIFECYCLE if before in OVER} == {("dead", "requeue")}
    assert set(EVENT_OF) == set(get_args(Verdict))
    assert all(("running", event) in LIFECYCLE for event in EVENT_OF.values())


def test_steps_pass_through_what_does_not_hold_them_up() -> None:
    """A retry that is due at once is ready in the same step, and so is a requeued job."""
    found = steps()
    assert (found["running", "ready"], found["running", "delayed"]) == ("again", "again")
    assert (found["waiting", "ready"], found["dead", "ready"]) == ("begin", "requeue")
    assert ("dead", "delayed") not in found
    assert ("ready", "done") not in found


@pytest.mark.parametrize(
    ("instant", "delay", "due"), [(0.0, 0.0, 0.0), (105.0, 0.0, 102.0), (105.0, 7.0, 107.0), (0.0, 7.0, 107.0)]
)
def test_a_delay_counts_from_now_and_an_instant_by_the_wall(instant: float, delay: float, due: float) -> None:
    """The wall clock is 3 s ahead of the engine's own."""
    assert due_at(instant, delay, wall=100.0, ahead=3.0) == due


def test_what_dies_too_often_is_given_up() -> None:
    assert [bool(given_up(lost, 3)) for lost in (1, 2, 3, 4)] == [False, False, True, True]
    assert [is_suspect(lost) for lost in (0, 1, 2)] == [False, False, True]
    assert sorted(PRIORITIES, key=rank) == list(reversed(PRIORITIES))


def test_a_stale_acknowledgement_names_its_lease() -> None:
    error = stale(Settlement("a", 3, "done"), "it is over")
    assert (error.code, error.details) == ("lease_lost", {"job": "a", "attempt": 3})


def test_the_capability_that_a_task_or_a_queue_needs() -> None:
    """The rule is one table for all engines."""
    task = NewTask("1", "mail.send", b"")
    some = {"queues"}
    assert lacking(task, some) is None
    assert lacking(task, set()) == "queues"
    assert lacking(msgspec.structs.replace(task, key="k"), some) == "jobs"
    for fields in ({"order": "o"}, {"waits": 1}, {"feeds": "2"}):
        assert lacking(msgspec.structs.replace(task, **fields), {"queues", "jobs"}) == "flows"
    assert lacking_for(Queue("mail.send", 1), {"events"}) == "queues"
    assert lacking_for(Queue("mail.send", 1, patterns=("a",)), some) == "events"
    assert lacking_for(Queue("mail.send", 1, patterns=("a",), concurrency=2), {"events"}) == "quotas"
    assert lacking_for(Queue("mail.send", 1, rate_per_s=2.0), {"queues", "quotas"}) is None

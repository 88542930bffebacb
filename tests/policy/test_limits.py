"""So many run, so many wait, the rest are refused at once."""

import timeit

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.policy.limits import REFUSE, RUN, WAIT, Gate


def test_places_then_queue_then_refusal():
    """Two run, one waits, the fourth is refused."""
    gate: Gate[str] = Gate(2, 1)
    assert [gate.admit(i) for i in "abcd"] == [RUN, RUN, WAIT, REFUSE]
    assert (gate.running, gate.waiting, gate.load) == (2, 1, 1.0)


def test_a_place_goes_to_who_waited_longest():
    """Released places are handed over in the order of arrival, and freed when nobody waits."""
    gate: Gate[str] = Gate(1, 3)
    for item in "abc":
        gate.admit(item)
    assert [gate.release(), gate.release(), gate.release()] == ["b", "c", None]
    assert gate.running == 0


def test_nobody_overtakes_a_waiting_item():
    """While the place is handed over, a newcomer still has to wait."""
    gate: Gate[str] = Gate(1, 3)
    gate.admit("a")
    gate.admit("b")
    assert gate.release() == "b"
    assert gate.admit("c") is WAIT


def test_a_cancelled_item_leaves_the_queue():
    """What was withdrawn is never handed a place, and its room in the queue is free again."""
    gate: Gate[str] = Gate(1, 2)
    for item in "abc":
        gate.admit(item)
    assert gate.withdraw("b")
    assert not gate.withdraw("b")
    assert gate.admit("d") is WAIT
    assert [gate.release(), gate.release(), gate.release()] == ["c", "d", None]


def test_withdrawing_what_runs_changes_nothing():
    """A running item keeps its place until it is released."""
    gate: Gate[str] = Gate(1, 0)
    gate.admit("a")
    assert not gate.withdraw("a")
    assert gate.running == 1


def test_a_stop_takes_out_everything_that_waits():
    """What has not begun is given back in order, to be refused; what runs goes on."""
    gate: Gate[str] = Gate(1, 5)
    for item in "abc":
        gate.admit(item)
    assert gate.evict() == ["b", "c"]
    assert (gate.running, gate.waiting) == (1, 0)


def test_releasing_twice_is_told():
    """A place that is given back twice is a defect of the caller and never makes room."""
    gate: Gate[str] = Gate(1, 0)
    gate.admit("a")
    gate.release()
    with pytest.raises(RuntimeError):
        gate.release()
    assert gate.admit("b") is RUN
    assert gate.admit("c") is REFUSE


def test_admitting_a_waiting_item_again_is_told():
    """Two of the same item in the queue could not be told apart."""
    gate: Gate[str] = Gate(1, 5)
    gate.admit("a")
    gate.admit("b")
    with pytest.raises(ValueError, match="'b'"):
        gate.admit("b")


@pytest.mark.parametrize(("concurrency", "queue", "name"), [(0, 1, "concurrency"), (1, -1, "queue")])
def test_a_gate_that_lets_nothing_through_is_refused(concurrency, queue, name):
    """Wrong limits are named when the gate is made."""
    with pytest.raises(ValueError, match=name):
        Gate(concurrency, queue)


def _cost_of_handover(length: int) -> float:
    gate: Gate[int] = Gate(1, length + 1)
    for item in range(length):
        gate.admit(item)
    fresh = iter(range(length, 10**9))

    def turn() -> None:
        gate.release()
        gate.admit(next(fresh))

    return min(timeit.repeat(turn, number=2000, repeat=5))


def test_a_long_queue_costs_no_more_than_a_short_one():
    """Handing over takes as long with 50,000 waiting as with 50 (far from the thousandfold of a scan)."""
    assert _cost_of_handover(50_000) < 20 * _cost_of_handover(50)


class GateMachine(RuleBasedStateMachine):
    """A gate against the plainest model of one: a list."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gate[int] = Gate(3, 4)
        self.running = 0
        self.waiting: list[int] = []
        self.made = 0

    @rule()
    def admit(self) -> None:
        self.made += 1
        verdict = self.gate.admit(self.made)
        if self.running < 3:
            self.running += 1
            assert verdict is RUN
        elif len(self.waiting) < 4:
            self.waiting.append(self.made)
            assert verdict is WAIT
        else:
            assert verdict is REFUSE

    @precondition(lambda self: self.running)
    @rule()
    def release(self) -> None:
        expected = self.waiting.pop(0) if self.waiting else None
        if expected is None:
            self.running -= 1
        assert self.gate.release() == expected

    @precondition(lambda self: self.waiting)
    @rule()
    def withdraw(self) -> None:
        item = self.waiting.pop(len(self.waiting) // 2)
        assert self.gate.withdraw(item)

    @invariant()
    def agrees(self) -> None:
        assert (self.gate.running, self.gate.waiting) == (self.running, len(self.waiting))
        assert not (self.waiting and self.running < 3)


test_a_gate_behaves_like_its_model = GateMachine.TestCase

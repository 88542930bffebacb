"""When a worker is told, drained or ended, by a manual clock."""

from __future__ import annotations

import pytest

from mesh.policy.liveness import BEAT_S, Limits, Liveness, Ruling, is_silent

MIB = 2**20


class Worker:
    """A loop and its watcher: time passes in steps of the watcher's own."""

    def __init__(self, **limits: float) -> None:
        self.now = 1000.0
        self.liveness = Liveness(Limits(**{"liveness_s": 30.0, **limits}), self.now)  # type: ignore[arg-type]

    def enter(self, stage: str) -> Worker:
        self.liveness.enter(stage, self.now)  # type: ignore[arg-type]
        return self

    def passes(self, seconds: float, *, blocked: bool = False, exhausted: bool = False) -> list[Ruling]:
        """What is ruled meanwhile, without the rulings that nothing is to be done."""
        rulings = []
        end = self.now + seconds
        while self.now < end:
            self.now += min(self.liveness.wait_s(self.now), max(end - self.now, 0.001))
            if not blocked:
                self.liveness.beat(self.now)
            rulings.append(self.liveness.judge(self.now, exhausted=exhausted))
        return [each for each in rulings if each.action]


def actions(rulings: list[Ruling]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((each.action, each.reason) for each in rulings))


def test_a_loop_that_runs_is_left_alone():
    """For hours."""
    assert Worker().enter("ready").passes(7200.0) == []


def test_a_block_is_told_once_and_ends_the_worker():
    """First after `lag_s`, then after `liveness_s`."""
    worker = Worker(liveness_s=2.0, lag_s=0.1).enter("ready")
    told, ended, *_ = worker.passes(2.5, blocked=True)
    assert told.action == "tell"
    assert 0.1 <= told.blocked_s < 0.2
    assert (ended.action, ended.reason) == ("end", "blocked")
    assert 2.0 <= ended.blocked_s <= 2.0 + 1.0


def test_many_blocks_are_told_seldom_and_counted():
    """One line in five seconds; it says how many there were between."""
    worker = Worker(lag_s=0.1).enter("ready")
    rulings = []
    for _ in range(40):
        rulings += worker.passes(0.3, blocked=True)
        rulings += worker.passes(0.15)
    assert [each.action for each in rulings] == ["tell"] * 4
    assert rulings[1].untold > 5


@pytest.mark.parametrize("stage", ["importing", "starting"])
@pytest.mark.parametrize("blocked", [True, False])
def test_a_start_has_its_own_limit(stage: str, blocked: bool):
    """A hook may block for longer than `liveness`, and may not wait for ever."""
    worker = Worker(liveness_s=1.0, start_s=10.0).enter(stage)
    assert actions(worker.passes(9.0, blocked=blocked)) in ([], [("tell", "blocked")])
    assert actions(worker.passes(2.0, blocked=blocked))[-1] == ("end", "start_timeout")


def test_waiting_for_what_it_needs_has_no_limit():
    """Other services may come tomorrow."""
    assert Worker(start_s=1.0).enter("waiting").passes(3600.0) == []


def test_a_paused_process_is_not_a_blocked_loop():
    """After a pause the thread wakes first; the loop gets its time."""
    worker = Worker(liveness_s=5.0).enter("ready")
    worker.passes(1.0)
    worker.now += 600.0
    assert actions([worker.liveness.judge(worker.now)]) in ([("", "")], [("tell", "blocked")])
    assert actions(worker.passes(6.0, blocked=True))[-1] == ("end", "blocked")


def test_limits_of_zero_are_off():
    """Nothing is told, nothing ends."""
    assert Worker(liveness_s=0.0, lag_s=0.0).enter("ready").passes(600.0, blocked=True) == []


def test_memory_drains_once_and_ends_what_does_not_drain():
    """Above the soft limit; the drain has a limit itself."""
    worker = Worker(soft_bytes=80 * MIB, hard_bytes=100 * MIB, drain_s=5.0)
    worker.liveness.memory_bytes = 30 * MIB
    worker.enter("ready")
    assert worker.passes(5.0) == []
    worker.liveness.memory_bytes = 81 * MIB
    assert [(each.action, each.reason) for each in worker.passes(4.0)] == [("drain", "memory")]
    assert actions(worker.passes(3.0)) == [("end", "memory")]


def test_a_worker_that_is_large_from_the_start_may_grow():
    """Half of what is left between its size and the hard limit; else it would be replaced for ever."""
    worker = Worker(soft_bytes=80 * MIB, hard_bytes=100 * MIB)
    worker.liveness.memory_bytes = 84 * MIB
    worker.enter("ready")
    assert worker.passes(5.0) == []
    worker.liveness.memory_bytes = 93 * MIB
    assert actions(worker.passes(1.0)) == [("drain", "memory")]


@pytest.mark.parametrize(("hard", "ruled"), [(100 * MIB, [("drain", "memory")]), (0, [])])
def test_a_memory_error_drains_where_there_is_a_limit(hard: int, ruled: list[tuple[str, str]]):
    """Without one, a single absurd allocation failed, and nothing is short."""
    worker = Worker(soft_bytes=hard and 80 * MIB, hard_bytes=hard).enter("ready")
    assert actions(worker.passes(2.0, exhausted=True)) == ruled


def test_silence_is_judged_from_outside():
    """Later than from inside, and not where the limit is off."""
    assert not is_silent(130.0, 100.0, 30.0)
    assert is_silent(136.0, 100.0, 30.0)
    assert not is_silent(1000.0, 100.0, 0.0)


def test_a_beat_tells_how_late_it_is():
    """Less its own interval."""
    worker = Worker().enter("ready")
    assert worker.liveness.beat(worker.now + BEAT_S + 0.25) == pytest.approx(0.25)

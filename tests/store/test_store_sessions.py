"""When a worker's session is over, as the store sees it: the pure half."""

from __future__ import annotations

import pytest

from mesh.engines.sqlite import liveness
from mesh.store.sessions import HANGS_AFTER, Sessions
from mesh.tasks.contract import Offer

HERE = "boot pid:[1]"


class Processes:
    """The processes of a host."""

    def __init__(self) -> None:
        self.alive = {7: "began-7", 8: "began-8"}

    def born(self, pid: int) -> str:
        return self.alive.get(pid, "")

    def dead(self, pid: int, began: str) -> bool:
        return bool(began) and self.alive.get(pid) != began


@pytest.fixture
def processes() -> Processes:
    return Processes()


@pytest.fixture
def sessions(processes: Processes) -> Sessions:
    return Sessions(10.0, pid_space=HERE, born=processes.born, dead=processes.dead)


def offer(pid: int = 7, space: str = HERE) -> Offer:
    return Offer("w@1", ("orders",), (), host="here", pid=pid, pid_space=space)


def died(sessions: Sessions, now: float) -> list[str]:
    return [name for name, _ in sessions.died(now)]


def test_a_session_with_an_open_stream_lives_however_busy(sessions: Sessions) -> None:
    """A loop that a handler blocks cannot renew; its link answers for it."""
    sessions.attach(offer(), 0.0)
    assert died(sessions, 200.0) == []
    assert sessions.renew("w@1", 250.0)
    assert died(sessions, 500.0) == []


def test_a_worker_that_hangs_for_ever_is_given_up(sessions: Sessions) -> None:
    """A link that stands and a loop that never turns again: some time its tasks go to others."""
    sessions.attach(offer(), 0.0)
    assert died(sessions, 10.0 * HANGS_AFTER + 1) == ["w@1"]


def test_silence_counts_from_the_end_of_the_stream(sessions: Sessions) -> None:
    """From there on a worker has a lease's time to come back."""
    sessions.attach(offer(space="elsewhere"), 0.0)
    sessions.away("w@1", 100.0)
    assert died(sessions, 109.9) == []
    assert died(sessions, 110.1) == ["w@1"]
    assert "w@1" in sessions
    sessions.forget("w@1")
    assert not sessions.renew("w@1", 111.0)


def test_a_worker_that_comes_back_in_time_goes_on(sessions: Sessions) -> None:
    """Attaching again ends the wait; so does a renewal meanwhile."""
    sessions.attach(offer(), 0.0)
    sessions.away("w@1", 5.0)
    assert sessions.renew("w@1", 14.0)
    assert died(sessions, 23.0) == []
    sessions.attach(offer(), 23.5)
    assert died(sessions, 60.0) == []


def test_a_dead_process_of_this_host_is_seen_at_once(sessions: Sessions, processes: Processes) -> None:
    """No lease is waited for when the process can be seen to be dead."""
    sessions.attach(offer(), 0.0)
    sessions.away("w@1", 5.0)
    assert died(sessions, 5.0) == []
    del processes.alive[7]
    due_at = sessions.due_at()
    assert due_at is not None
    assert due_at < 5.1
    assert died(sessions, due_at) == ["w@1"]


def test_another_process_with_the_same_pid_is_not_the_worker(sessions: Sessions, processes: Processes) -> None:
    """Pids are given again; when a process began is not."""
    sessions.attach(offer(), 0.0)
    processes.alive[7] = "began later"
    sessions.away("w@1", 5.0)
    assert died(sessions, 5.0) == ["w@1"]


def test_processes_elsewhere_are_not_looked_at(sessions: Sessions, processes: Processes) -> None:
    """The same pid on another host, or in another container, says nothing."""
    sessions.attach(offer(space="boot pid:[2]"), 0.0)
    del processes.alive[7]
    sessions.away("w@1", 5.0)
    assert died(sessions, 6.0) == []


def test_who_held_something_at_the_start_has_a_lease_to_come_back(sessions: Sessions) -> None:
    """After a restart the store has leases of workers that it has not heard of."""
    sessions.found("w@1", 50.0)
    assert died(sessions, 59.0) == []
    assert died(sessions, 61.0) == ["w@1"]


def test_a_worker_that_stops_keeps_its_session(sessions: Sessions) -> None:
    """It takes nothing new, and is known until it leaves."""
    sessions.attach(offer(), 0.0)
    assert sessions.takes("w@1")
    assert sessions.stop("w@1", 1.0)
    assert not sessions.takes("w@1")
    assert sessions.renew("w@1", 2.0)
    assert sessions.services() == {"orders"}
    assert not sessions.stop("nobody", 2.0)


def test_vitals_tell_the_living_from_the_dead() -> None:
    """On a real host: this process lives; one that has ended and one that is a zombie do not."""
    import os
    import subprocess
    import sys

    if not liveness.pid_space():
        pytest.skip("no /proc here")
    mine = liveness.born(os.getpid())
    assert mine
    assert not liveness.dead(os.getpid(), mine)
    assert liveness.dead(os.getpid(), "another birth")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    born = liveness.born(child.pid)
    assert born
    assert not liveness.dead(child.pid, born)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert liveness.dead(child.pid, born)  # it waits to be reaped
    child.communicate()
    assert liveness.dead(child.pid, born)
    assert not liveness.dead(child.pid, "")

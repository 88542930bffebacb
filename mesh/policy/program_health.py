"""The health of a program: when it joins the registry, when it leaves, and when it is replaced.

Owns: the states and their transitions, as a table. Leaves to others: making the checks, and acting (worker.program).
"""

from __future__ import annotations

from typing import Final, Literal

#: Failed checks in a row after which a program leaves the registry. One alone may be a pause of the machine.
LEAVE_AFTER: Final = 2

State = Literal["starting", "healthy", "doubtful", "unhealthy", "given_up"]
#: What to do: nothing, register, deregister, or end the program so that another one is started.
Action = Literal["", "join", "leave", "replace"]
#: A check passed; it failed; it failed for the LEAVE_AFTER-th time in a row; it failed too often.
Event = Literal["pass", "fail", "fail_again", "fail_for_good"]

HEALTH: Final[dict[tuple[State, Event], tuple[State, Action]]] = {
    ("starting", "pass"): ("healthy", "join"),
    # While it starts, the limit is a time, which the caller watches.
    ("starting", "fail"): ("starting", ""),
    ("starting", "fail_again"): ("starting", ""),
    ("starting", "fail_for_good"): ("starting", ""),
    ("healthy", "pass"): ("healthy", ""),
    ("healthy", "fail"): ("doubtful", ""),
    ("healthy", "fail_again"): ("unhealthy", "leave"),
    ("healthy", "fail_for_good"): ("given_up", "replace"),
    ("doubtful", "pass"): ("healthy", ""),
    ("doubtful", "fail_again"): ("unhealthy", "leave"),
    ("doubtful", "fail_for_good"): ("given_up", "replace"),
    ("unhealthy", "pass"): ("healthy", "join"),
    ("unhealthy", "fail_again"): ("unhealthy", ""),
    ("unhealthy", "fail_for_good"): ("given_up", "replace"),
}


class ProgramHealth:
    """The health of one program.

    Args:
        most: failed checks in a row after which it is replaced; 0: never.

    Attributes:
        state: its state.
        failed: failed checks in a row.
    """

    def __init__(self, most: int) -> None:
        self.state: State = "starting"
        self.failed = 0
        self._most = most

    def note(self, passed: bool) -> Action:
        """A check has ended; what to do now."""
        self.failed = 0 if passed else self.failed + 1
        self.state, action = HEALTH[self.state, self._event(passed)]
        return action

    def _event(self, passed: bool) -> Event:
        if passed:
            return "pass"
        if self.state != "starting" and 0 < self._most <= self.failed:
            return "fail_for_good"
        return "fail_again" if self.failed >= LEAVE_AFTER else "fail"

"""The rules of health: one failure is an accident, two are a reason to leave, many to be replaced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.program_health import LEAVE_AFTER, ProgramHealth


def actions(most: int, checks: str) -> list[str]:
    """The actions after these checks: "+" passed, "-" failed."""
    health = ProgramHealth(most)
    return [health.note(check == "+") for check in checks]


def test_a_program_joins_leaves_and_comes_back():
    assert actions(0, "--+") == ["", "", "join"]
    assert actions(0, "+-+") == ["join", "", ""]
    assert actions(0, "+--+") == ["join", "", "leave", "join"]
    assert actions(0, "+-----") == ["join", "", "leave", "", "", ""]


def test_a_program_is_replaced_after_the_last_failure():
    assert actions(3, "+---") == ["join", "", "leave", "replace"]
    assert actions(1, "+-") == ["join", "replace"]
    assert actions(3, "+--+--") == ["join", "", "leave", "join", "", "leave"]
    # While it starts, time decides, not the number of checks.
    assert actions(1, "----+") == ["", "", "", "", "join"]


@given(st.integers(0, 5), st.text("+-", max_size=60))
def test_every_sequence_of_checks_has_an_answer(most: int, checks: str):
    """It is registered exactly while fewer than LEAVE_AFTER checks in a row have failed since it was last well."""
    health = ProgramHealth(most)
    registered = False
    for check in checks:
        action = health.note(check == "+")
        assert (action == "join") == (not registered and check == "+")
        registered = (registered or action == "join") and action != "leave"
        if action == "replace":
            assert health.failed == most > 0
            return
        if registered:
            assert health.failed < LEAVE_AFTER

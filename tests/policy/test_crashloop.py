"""Short lives in a row are a loop, and the waits grow; a long life or a helping hand ends it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.crashloop import CALM, LOOP_AFTER, LOOPING, STEADY_S, Lives


def after(*lived: float) -> Lives:
    lives = Lives()
    for at, lived_s in enumerate(lived):
        lives.ended(lived_s, float(at))
    return lives


def test_the_fifth_short_life_in_a_row_is_a_loop():
    """Four are an accident."""
    assert after(*[2.0] * (LOOP_AFTER - 1)).state == CALM
    lives = after(*[2.0] * LOOP_AFTER)
    assert (lives.state, lives.short, lives.since, lives.wait_s) == (LOOPING, 5, 0.0, 1.0)


def test_the_waits_double_up_to_a_minute():
    """It is never given up: what it waits for may be mended by somebody else."""
    waits = [after(*[1.0] * n).wait_s for n in range(1, 16)]
    assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]


def test_a_long_life_ends_the_loop():
    """Whether it ended, or is seen to go on."""
    lives = after(*[1.0] * 7, STEADY_S)
    assert (lives.state, lives.short, lives.wait_s, lives.crashes) == (CALM, 0, 0.0, 8)
    lives = after(*[1.0] * 7)
    lives.steady()
    assert (lives.state, lives.short) == (CALM, 0)


def test_who_is_stopped_by_hand_begins_anew():
    """Somebody may have mended it."""
    lives = after(*[1.0] * 7)
    lives.asked()
    assert (lives.state, lives.short, lives.crashes) == (CALM, 0, 7)


@given(st.lists(st.one_of(st.floats(0, 200), st.sampled_from(["steady", "asked"]))))
def test_any_story_can_be_told(story: list[float | str]):
    """No order of events is a mistake; a wait is there exactly in a loop, and is never longer than a minute."""
    lives = Lives()
    for at, word in enumerate(story):
        if word == "steady":
            lives.steady()
        elif word == "asked":
            lives.asked()
        else:
            lives.ended(float(word), float(at))
        assert (lives.wait_s > 0) == (lives.state == LOOPING) == (lives.short >= LOOP_AFTER)
        assert lives.wait_s <= 60.0

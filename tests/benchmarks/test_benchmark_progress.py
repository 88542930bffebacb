"""How far a run is."""

from __future__ import annotations

import pytest

from benchmarks.progress import share


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("rpc, round 1 of 2: starting mesh", 0.0),
        ("rpc, round 2 of 2: starting mesh", 0.25),
        ("http, round 1 of 2: plain", 0.5),
        ("http: starting", None),
        ("other, round 1 of 2", None),
    ],
)
def test_what_is_said_tells_how_far_the_run_is(text: str, done: float | None):
    """Parts count alike, and rounds within them."""
    assert share(text, ["rpc", "http"]) == done

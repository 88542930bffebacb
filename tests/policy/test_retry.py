"""Which failures are tried again, and when."""

from __future__ import annotations

import pytest

from mesh.policy.backoff import Backoff
from mesh.policy.retry import Failure, Retrying

BACKOFF = Backoff(0.1, 1.0, jitter=0.0)
PASSING = Failure("unavailable", passing=True, uncertain=False)
UNCERTAIN = Failure("link_lost", passing=False, uncertain=True)
FINAL = Failure("out_of_stock", passing=False, uncertain=False)


@pytest.mark.parametrize(
    ("failure", "idempotent", "codes", "delay"),
    [
        (PASSING, False, None, 0.1),
        (PASSING, True, None, 0.1),
        (UNCERTAIN, True, None, 0.1),
        (UNCERTAIN, False, None, None),  # the handler may have run
        (FINAL, True, None, None),
        (FINAL, False, ["out_of_stock"], 0.1),
        (UNCERTAIN, False, ["link_lost"], None),  # whatever is listed
        (UNCERTAIN, True, ["link_lost"], 0.1),
        (PASSING, True, ["out_of_stock"], None),
        (PASSING, True, [], None),
    ],
)
def test_what_is_tried_again(failure: Failure, idempotent: bool, codes: list[str] | None, delay: float | None):
    retrying = Retrying(3, BACKOFF, codes)
    assert retrying.delay(1, failure, idempotent=idempotent, left_s=10.0, rnd=0.0) == delay


def test_the_wait_grows_and_the_attempts_end():
    retrying = Retrying(3, BACKOFF)
    waits = [retrying.delay(attempt, PASSING, idempotent=True, left_s=10.0, rnd=0.0) for attempt in range(1, 6)]
    assert waits == [0.1, 0.2, 0.4, None, None]


def test_it_waits_as_long_as_the_other_side_asks_and_not_beyond_the_deadline():
    retrying = Retrying(1, BACKOFF)
    limited = Failure("rate_limited", passing=True, uncertain=False, wait_s=2.0)
    assert retrying.delay(1, limited, idempotent=True, left_s=10.0, rnd=0.0) == 2.0
    assert retrying.delay(1, limited, idempotent=True, left_s=2.0, rnd=0.0) is None
    assert retrying.delay(1, PASSING, idempotent=True, left_s=0.05, rnd=0.0) is None

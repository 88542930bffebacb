"""What every test of state begins with."""

from __future__ import annotations

import pytest
from state_bench import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()

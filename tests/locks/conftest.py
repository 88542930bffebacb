"""What every test of locks begins with."""

from __future__ import annotations

import pytest
from locks_bench import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()

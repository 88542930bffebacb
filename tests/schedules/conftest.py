"""What the tests of the driver begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from schedules_bench import Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.close()

"""A yard of transports with keys, for the tests of secure links."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from curve_keys import Yard


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    yard = Yard(tmp_path)
    try:
        yield yard
    finally:
        await yard.close()

"""A site for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from program_site import Site


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site() as made:
        yield made

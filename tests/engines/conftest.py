"""Fixtures of the engines' own tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlite_bench import QUICK_DIR, Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    with TemporaryDirectory(prefix="mesh-engines-", dir=QUICK_DIR) as dir:
        bench = Bench(Path(dir) / "data")
        yield bench
        bench.core.close()

"""What the tests of calls share."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.telemetry import logs


class Log:
    """The lines that were logged, as maps."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """All lines, or those of one event."""
        found = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in found if event is None or line["event"] == event]


@pytest.fixture
def log() -> Iterator[Log]:
    stream = io.StringIO()
    logs.configure("debug", "json", stream)
    yield Log(stream)
    logs.reset()

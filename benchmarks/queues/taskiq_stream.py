"""taskiq on a Redis stream: a task is acknowledged when it has run, and read again when its worker dies."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from benchmarks.peers import Place
from benchmarks.queues import Publisher, taskiq

PEER = taskiq.peer("taskiq_stream", "taskiq, stream", "RedisStreamBroker", "acknowledged after the run")


def connect(place: Place) -> AbstractAsyncContextManager[Publisher]:
    return taskiq.publisher(place, "RedisStreamBroker")

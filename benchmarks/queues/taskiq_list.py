"""taskiq on a Redis list: nothing is acknowledged, what a worker has taken is lost with it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from benchmarks.peers import Place
from benchmarks.queues import Publisher, taskiq

PEER = taskiq.peer("taskiq_list", "taskiq, list", "ListQueueBroker", "without acknowledgement")


def connect(place: Place) -> AbstractAsyncContextManager[Publisher]:
    return taskiq.publisher(place, "ListQueueBroker")

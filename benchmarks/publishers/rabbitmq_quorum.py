"""RabbitMQ with the kind of queue that it recommends for what must not be lost, of one member."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from benchmarks.peers import Place
from benchmarks.publishers import Publisher, rabbitmq

PEER = rabbitmq.peer("rabbitmq_quorum", "RabbitMQ, quorum", "a quorum queue of one member")


def connect(place: Place) -> AbstractAsyncContextManager[Publisher]:
    return rabbitmq.publisher(place, {"x-queue-type": "quorum"})

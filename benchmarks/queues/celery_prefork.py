"""Celery with its usual pool, a process for each of two processors."""

from __future__ import annotations

from benchmarks.queues import celery

PEER = celery.peer(
    "celery_prefork", "Celery, prefork", "one worker, -P prefork -c 2, its usual pool", "-P", "prefork", "-c", "2"
)
connect = celery.connect

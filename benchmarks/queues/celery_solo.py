"""Celery with `-P solo`: tasks run in the worker's own process, which measured fastest for tasks that do nothing."""

from __future__ import annotations

from benchmarks.queues import celery

PEER = celery.peer("celery_solo", "Celery, solo", "one worker, -P solo, one process", "-P", "solo")
connect = celery.connect

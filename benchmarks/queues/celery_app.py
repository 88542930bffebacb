"""What `celery -A` imports in a worker."""

from __future__ import annotations

from benchmarks.queues import place_of_worker
from benchmarks.queues.celery import application

app, nothing = application(place_of_worker())

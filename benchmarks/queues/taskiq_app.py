"""What `taskiq worker` imports."""

from __future__ import annotations

import os

from benchmarks.queues import place_of_worker, taskiq

broker, nothing = taskiq.broker(place_of_worker(), os.environ[taskiq.BROKER])

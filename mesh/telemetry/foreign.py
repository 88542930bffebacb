"""Metrics that an application, or one of its libraries, registers with prometheus_client.

They are on the host's page, too, with the labels of their process. prometheus_client's metrics of the process and of
the interpreter are left out: mesh has its own.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from mesh.telemetry.snapshot import ForeignFamily

_OWN: Final = ("python_", "process_")

#: The maximum number of samples of one process; a label with user ids must not fill the page.
MAX_SAMPLES: Final = 5000


def foreign_families() -> list[ForeignFamily]:
    """The metrics registered with prometheus_client in this process; empty when it is not imported."""
    client: Any = sys.modules.get("prometheus_client")
    if client is None or not hasattr(client, "REGISTRY"):
        return []
    found: list[ForeignFamily] = []
    room = MAX_SAMPLES
    for metric in client.REGISTRY.collect():
        if metric.name.startswith(_OWN) or not metric.samples or len(metric.samples) > room:
            continue
        room -= len(metric.samples)
        samples = [
            (sample.name, dict(sample.labels), float(sample.value))
            for sample in metric.samples
            # Prometheus' text format does not use creation times.
            if not sample.name.endswith("_created")
        ]
        found.append(ForeignFamily(metric.name, metric.type, metric.documentation, samples))
    return found

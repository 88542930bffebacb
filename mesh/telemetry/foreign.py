"""Metrics that an application, or a library of it, keeps in prometheus_client's own registry.

They are on the host's page as well, with the labels of their process. prometheus_client's figures of the process and
of the interpreter are left out: mesh has its own.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from mesh.telemetry.snapshot import ForeignFamily

_OWN: Final = ("python_", "process_")

#: Samples that one process may bring; a label with user ids in it must not fill this page.
MAX_SAMPLES: Final = 5000


def foreign_families() -> list[ForeignFamily]:
    """What is registered with prometheus_client in this process; nothing where it is not imported."""
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
            # The instant of creation is of no use to Prometheus' text format.
            if not sample.name.endswith("_created")
        ]
        found.append(ForeignFamily(metric.name, metric.type, metric.documentation, samples))
    return found

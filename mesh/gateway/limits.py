"""Counting what the limits of a gateway have ended.

Owns: the metric. Leaves to others: the limits (admission, body, depth, readers).
"""

from __future__ import annotations

from mesh.gateway.ports import Recorder


def exceeded(recorder: Recorder, limit: str) -> None:
    """Count a request or connection.

    Args:
        limit: the key in [gateway], such as "max_body".
    """
    counter = recorder.counter(
        "http_limits_exceeded", "Requests and connections that a limit of the gateway has ended.", limit=limit
    )
    counter.value += 1

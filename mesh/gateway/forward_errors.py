"""The errors of servers that requests are forwarded to.

Owns: the classes, with their codes. Leaves to others: when they are raised (forwarding, forward_answer, tunnel).
"""

from __future__ import annotations

from mesh.errors import Uncertain


class BadGateway(Uncertain):
    """The server that a request was forwarded to could not be reached, or its answer could not be read."""

    code = "bad_gateway"


class UpstreamTimeout(Uncertain):
    """The server that a request was forwarded to could not be reached in time, or did not answer in time."""

    code = "upstream_timeout"
    status = 504

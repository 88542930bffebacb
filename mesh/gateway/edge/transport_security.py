"""Strict-Transport-Security: browsers use only HTTPS for the gateway's host.

Owns: the header line (RFC 6797), on answers to requests that came over HTTPS. Leaves to others: TLS (listeners).
"""

from __future__ import annotations

from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.request import Request


def transport_security(front: Front) -> Concern | None:
    """The concern; None when `gateway.tls.hsts` is 0."""
    seconds = int(front.settings.gateway.tls.hsts_s)
    if not seconds:
        return None
    line = b"Strict-Transport-Security: max-age=%d\r\n" % seconds

    async def hook(request: Request, proceed: Proceed) -> Answer:
        if request.scheme == "https":
            request.raw.lines += line
        return await proceed(request)

    return Concern(name="transport_security", hook=hook, facts={"max_age_s": seconds})

"""Header fields that tell browsers what pages of this gateway may do, and fields that the project adds.

Owns: `[gateway.headers]`. An answer that sets one of these fields itself keeps its own.
Leaves to others: Strict-Transport-Security (TLS), CORS (cors), the policy of the documentation page (mounts.docs).

Off by default: services that answer JSON gain little from these fields, and pages of existing applications may need
other ones. The gateway's own page always has a policy of its own.
"""

from __future__ import annotations

from typing import Final

from mesh.errors import ConfigError
from mesh.gateway.edge.answer_fields import names_in
from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.reply import NOSNIFF, Reply
from mesh.gateway.request import Request
from mesh.protocol import http_head

#: The value of a setting that leaves its field out.
_OFF: Final = "off"


def make(front: Front) -> Concern | None:
    """The concern, if the settings have a field to add.

    Raises:
        ConfigError: a value of `gateway.headers` cannot be sent.
    """
    settings = front.settings.gateway.headers
    found: dict[str, str] = {}
    if settings.secure:
        found = {
            "Content-Security-Policy": settings.content_security_policy,
            "X-Frame-Options": settings.frame_options.upper() if settings.frame_options != _OFF else _OFF,
            "Referrer-Policy": settings.referrer_policy,
            "Permissions-Policy": settings.permissions_policy,
            "Cross-Origin-Opener-Policy": settings.opener_policy,
            "Cross-Origin-Resource-Policy": settings.resource_policy,
        }
    lines = [NOSNIFF] if settings.secure else []
    for name, value in found.items():
        if value.lower() != _OFF:
            lines.append(_line(f'gateway.headers: "{name}"', name, value))
    for text in settings.extra:
        name, colon, value = text.partition(":")
        if not colon:
            raise ConfigError(f'gateway.headers.extra: "{text[:80]}" is not a header field; write "Name: value"')
        lines.append(_line("gateway.headers.extra", name.strip(), value.strip()))
    if not lines:
        return None
    return Concern(
        name="security_headers",
        hook=SecurityHeaders(b"".join(lines)).hook,
        facts={"secure": settings.secure, "extra": len(settings.extra)},
    )


def _line(what: str, name: str, value: str) -> bytes:
    try:
        http_head.check_field(name, value)
    except ValueError as exc:
        raise ConfigError(f"{what}: {exc}") from None
    return http_head.lines(((name, value),))


class SecurityHeaders:
    """Adds the same lines to every answer."""

    def __init__(self, lines: bytes) -> None:
        self._lines = lines
        self._names = names_in(lines)

    async def hook(self, request: Request, proceed: Proceed) -> Answer:
        """Add the lines before the request is answered, so that errors and streams have them, too."""
        raw = request.raw
        raw.lines += self._lines
        raw.defaults = self._names
        answer = await proceed(request)
        if isinstance(answer, Reply) and answer.extra:
            raw.override(answer.extra)
        return answer

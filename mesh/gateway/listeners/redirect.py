"""The listener that redirects HTTP to HTTPS, and answers the challenges of ACME.

Owns: its answers. Leaves to others: which hosts are known (sites), challenges (acme_store), connections (admission).
"""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs

from mesh.config import Settings
from mesh.errors import BadRequest, MeshError
from mesh.gateway.listeners.acme_store import CHALLENGES, AcmeStore
from mesh.gateway.problems import Problems, Unforeseen
from mesh.gateway.reply import Reply
from mesh.gateway.request import RawRequest
from mesh.gateway.sites import Sites, read_authority
from mesh.telemetry.logs import get_logger

_log = get_logger(__name__)

_HTTPS: Final = 443


class Redirecting:
    """Answers the requests of one gateway's redirect listener. No answer keeps its connection open."""

    def __init__(self, settings: Settings, sites: Sites, problems: Problems) -> None:
        gateway = settings.gateway
        self._sites = sites
        self._problems = problems
        port = gateway.tls.public_port or gateway.port
        self._port = "" if port == _HTTPS else f":{port}"
        self._acme = AcmeStore(settings) if gateway.acme.domains else None

    async def handler(self, raw: RawRequest) -> Reply:
        """Answer one request."""
        try:
            reply = self._answer(raw)
        except MeshError as exc:
            reply = self._problems.reply(exc)
        except Exception:
            _log.exception("gateway.failed", verb=raw.method, path=raw.raw_path[:200], mount="redirect")
            reply = self._problems.reply(Unforeseen())
        reply.keep_alive = False
        return reply

    def _answer(self, raw: RawRequest) -> Reply:
        path = raw.raw_path
        if self._acme is not None and path.startswith(CHALLENGES):
            return self._acme.reply(path)
        host = raw.headers.get(hdrs.HOST)
        authority = read_authority(host) if host is not None else None
        if authority is None or not path.startswith("/") or "\\" in path:
            raise BadRequest("send the request over HTTPS: without a valid Host and a path it cannot be redirected")
        self._sites.check_host(host)
        name = f"[{authority.host}]" if ":" in authority.host else authority.host
        # A raw path is ASCII without spaces: aiohttp's parser refuses others.
        target = f"https://{name}{self._port}{path}"
        return Reply(status=308, extra=b"Location: %b\r\n" % target.encode("ascii", "replace"))

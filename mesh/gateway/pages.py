"""The pages that a gateway answers itself: health, metrics, status, OpenAPI, and the documentation page.

Owns: which address is which page. Leaves to others: their content (health, metrics, status, openapi, docs).
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec

from mesh.config import Settings
from mesh.errors import MethodNotAllowed
from mesh.gateway.body import Request
from mesh.gateway.catalog import Catalog
from mesh.gateway.docs import PAGES, docs_reply
from mesh.gateway.health import Health
from mesh.gateway.media import JSON_TYPE
from mesh.gateway.metrics import metrics_reply
from mesh.gateway.openapi import document
from mesh.gateway.ports import Node
from mesh.gateway.reply import Reply
from mesh.gateway.routes import Routes, allow_header
from mesh.gateway.status import status

#: The addresses of the pages.
OWN: Final = frozenset({"/livez", "/readyz", "/metrics", "/mesh", "/openapi.json", *PAGES})

_READABLE: Final = frozenset({"GET", "HEAD"})


class Pages:
    """The pages of one gateway."""

    def __init__(self, node: Node, settings: Settings, catalog: Catalog, health: Health) -> None:
        self._node = node
        self._settings = settings
        self._catalog = catalog
        self._health = health
        self._started_at = node.clock.wall()
        self._openapi: tuple[Routes | None, bytes] = (None, b"")

    async def answer(self, request: Request, path: str, query: str) -> Reply:
        """The page at `path`, which is in OWN. Raises MethodNotAllowed."""
        if request.method not in _READABLE:
            allow = allow_header({"GET"})
            if request.method == "OPTIONS":
                return Reply(status=204, extra=b"Allow: %b\r\n" % allow.encode())
            raise MethodNotAllowed(f"{request.method} {path}: not allowed here", details={"allow": allow})
        if path == "/metrics":
            return await metrics_reply(self._node, self._settings.mesh.host, self._settings.mesh.run_dir)
        if path == "/livez":
            return self._health.live_reply(verbose=_is_verbose(query))
        if path == "/readyz":
            verbose = _is_verbose(query)
            return self._health.ready_reply(
                verbose=verbose, conflicts=self._catalog.routes.conflicts if verbose else ()
            )
        if path == "/mesh":
            return Reply(msgspec.json.format(msgspec.json.encode(self.status()), indent=2) + b"\n", JSON_TYPE)
        if path == "/openapi.json":
            return Reply(self.openapi(), JSON_TYPE)
        return docs_reply(path)

    def status(self) -> dict[str, Any]:
        """The content of /mesh."""
        mesh = self._settings.mesh
        return status(
            self._node, self._catalog, self._health, mesh=mesh.name, host=mesh.host, started_at=self._started_at
        )

    def openapi(self) -> bytes:
        """The OpenAPI document, rebuilt only when an offer has changed."""
        routes = self._catalog.routes
        if self._openapi[0] is not routes:
            made = document(self._catalog, title=self._settings.mesh.name, version=_version())
            self._openapi = (routes, msgspec.json.encode(made))
        return self._openapi[1]


def _is_verbose(query: str) -> bool:
    return any(part.partition("=")[0] == "verbose" for part in query.split("&"))


def _version() -> str:
    try:
        return version("zeromesh")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"

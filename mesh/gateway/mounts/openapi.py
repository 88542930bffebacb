"""/openapi.json: the OpenAPI document of everything that the gateway serves.

Owns: when to rebuild it, and its form in bytes.
Leaves to others: its content (gateway.openapi, the mounts), showing it (docs).
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import msgspec

from mesh.gateway.front import Front
from mesh.gateway.media import JSON_TYPE
from mesh.gateway.mounts.contract import Mount
from mesh.gateway.openapi import Document
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.gateway.routes import Routes
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")


def mount(front: Front) -> Mount:
    """/openapi.json."""
    built: tuple[Routes | None, bytes] = (None, b"")

    async def show(_: Request) -> Reply:
        nonlocal built
        routes = front.catalog.routes
        # Rebuilt only when an offer has changed.
        if built[0] is not routes:
            built = (routes, openapi(front))
        return Reply(built[1], JSON_TYPE)

    return Mount(prefix="/openapi.json", handler=show, exact=True)


def openapi(front: Front) -> bytes:
    """The document as JSON."""
    document = Document(front.catalog)
    for mounted in front.mounts:
        try:
            add_mount(document, mounted.mount)
        except Exception as exc:
            # It was checked when the gateway started, so it has changed since: the rest of the document is served.
            _log.warning("mount.openapi_omitted", mount=mounted.prefix, error=str(exc)[:500])
    for concern in front.concerns:
        if concern.openapi is not None:
            concern.openapi(document)
    return msgspec.json.encode(document.make(title=front.settings.mesh.name, version=_version()))


def add_mount(document: Document, mount: Mount) -> None:
    """Add the part of one mount, if it has one. Raises whatever its function raises."""
    if callable(mount.openapi):
        mount.openapi(document)
    elif mount.openapi is not None:
        document.add(mount.prefix, mount.openapi)


def _version() -> str:
    try:
        return version("zeromesh")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"

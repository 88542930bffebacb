"""The target of a forwarded request: which path, at which server.

Owns: what a path may hold, removing a prefix, and the URL at a server. Pure.
Leaves to others: sending the request (forwarding), choosing the server (upstreams).
"""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import hdrs
from yarl import URL

from mesh.errors import BadRequest
from mesh.gateway.paths import decode_segment
from mesh.gateway.request import Request


class Target(NamedTuple):
    """The target of one request.

    Attributes:
        path, query: percent-encoded, as received.
        host: the Host field as received.
        prefix: what was removed from the path; "" when nothing was.
    """

    path: str
    query: str
    host: str
    prefix: str

    def url(self, base: URL) -> URL:
        """The address at a server.

        Args:
            base: of the server; its path comes before this one.
        """
        return URL.build(
            scheme=base.scheme,
            authority=base.raw_authority,
            path=base.raw_path.rstrip("/") + self.path,
            query_string=self.query,
            encoded=True,
        )


def target_of(request: Request, prefix: str) -> Target:
    """The target of a request.

    Args:
        prefix: what to remove from the path.

    Raises:
        BadRequest: as for `check_path` and `check_characters`.
    """
    path = request.path
    check_path(path)
    check_characters(request.query_string, "query")
    if prefix:
        path = path[len(prefix) :] or "/"
    return Target(path, request.query_string, request.raw.headers.get(hdrs.HOST, ""), prefix)


def check_path(path: str) -> None:
    """Check that a path cannot leave the prefix of its mount, however the upstream decodes it.

    Raises:
        BadRequest: a segment is "." or ".." once decoded, or a character is not allowed in a path.
    """
    check_characters(path, "path")
    if not path.startswith("/"):
        raise BadRequest("the target is not a path", details={"path": "path"})
    if "/." not in path and "%" not in path and "\\" not in path:
        return
    for part in path.split("/"):
        decoded = decode_segment(part)
        if "\0" in decoded or any(
            each.partition(";")[0] in (".", "..") for each in decoded.replace("\\", "/").split("/")
        ):
            raise BadRequest(
                f'path: {part[:80]!a} is not forwarded: a segment may not be "." or "..", nor hold NUL, even '
                "percent-encoded",
                details={"path": "path"},
            )


def check_characters(text: str, part: str) -> None:
    """Check that a part of a target can be written into a request line.

    Raises:
        BadRequest: it holds a control character, a space, a "#", or a character outside of ASCII.
    """
    if not text.isascii() or not text.isprintable() or " " in text or "#" in text:
        raise BadRequest(f"the {part} holds a character that must be percent-encoded", details={"path": part})

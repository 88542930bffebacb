"""Compresses answers with the coding that a client accepts: gzip, Brotli or Zstandard.

Owns: which answers are compressed, and doing it without blocking the event loop for long.
Leaves to others: choosing the coding (accept_encoding), decoding requests (gateway.decompress), ETags (caching).

Answers that carry secrets are left alone, because the length of a compressed answer tells about its content when an
attacker can choose part of it (BREACH): those that set cookies, those to requests with credentials from a page of
another site, and those with `Cache-Control: no-transform`, which any route can set. Streams are written item by item,
and are not compressed: items would wait for each other.
"""

from __future__ import annotations

import asyncio
import importlib
import zlib
from collections.abc import Callable
from typing import Any, Final

from aiohttp import hdrs

from mesh.config.edge_protect import CompressionSettings
from mesh.errors import ConfigError
from mesh.gateway.edge.accept_encoding import choose
from mesh.gateway.edge.answer_fields import directives, names_in, value_of, without
from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.front import Front
from mesh.gateway.media import essence
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.gateway.sites import SEC_FETCH_SITE

Compress = Callable[[Any], bytes]

#: Larger bodies are compressed in a thread: gzip takes about 1 ms for 64 KiB, and all codings release the interpreter.
INLINE_BYTES: Final = 64 * 1024

#: Statuses with a body that is a representation of the resource as a whole. A part (206) is of the uncompressed one.
_WHOLE: Final = frozenset({200, 201, 202, 203, 400, 404, 409, 410, 422})

_VARY: Final = b"Vary: Accept-Encoding\r\n"
#: Fields about the exact bytes of a body.
_DIGESTS: Final = frozenset({b"content-digest", b"repr-digest", b"digest", b"content-md5"})
#: Fields of answers that are not compressed.
_EXCLUDING: Final = _DIGESTS | {b"content-encoding", b"content-range", b"set-cookie"}


def make(front: Front) -> Concern | None:
    """The concern, if `gateway.compression.codings` names a coding.

    Raises:
        ConfigError: a coding is unknown, or its library is not installed.
    """
    settings = front.settings.gateway.compression
    if not settings.codings:
        return None
    codings = {name: _compressor(name, settings) for name in dict.fromkeys(settings.codings)}
    return Concern(
        name="compression",
        hook=Compression(settings, codings).hook,
        facts={"codings": list(codings), "minimum_bytes": settings.minimum_bytes},
    )


def _compressor(name: str, settings: CompressionSettings) -> Compress:
    if name == "gzip":
        level = settings.gzip_level

        def gzip(body: Any) -> bytes:
            packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS | 16)
            return packer.compress(body) + packer.flush()

        return gzip
    if name == "br":
        brotli = _library("brotli", name)
        quality = settings.br_level
        return lambda body: bytes(brotli.compress(bytes(body), quality=quality))
    if name == "zstd":
        zstandard = _library("zstandard", name)
        effort = settings.zstd_level
        # A compressor must not be used by two threads at once; making one is cheap.
        return lambda body: bytes(zstandard.ZstdCompressor(level=effort).compress(body))
    raise ConfigError(f'gateway.compression.codings: "{name}" is not one of "zstd", "br" and "gzip"')


def _library(module: str, coding: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f'gateway.compression.codings: "{coding}" needs the package {module}; '
            "pip install 'zeromesh[compression]', or leave the coding out"
        ) from None


class Compression:
    """Compresses the answers of one gateway.

    Args:
        codings: the compressor of each coding, the preferred one first.
    """

    def __init__(self, settings: CompressionSettings, codings: dict[str, Compress]) -> None:
        self._codings = codings
        self._offered = tuple(codings)
        self._minimum = settings.minimum_bytes
        types = [each.lower() for each in settings.types]
        self._exact = frozenset(each for each in types if "*" not in each)
        self._starts = tuple(each[:-1] for each in types if each.endswith("/*"))
        self._ends = tuple(each[1:] for each in types if each.startswith("*+"))
        if wrong := [each for each in types if "*" in each and not each.endswith("/*") and not each.startswith("*+")]:
            raise ConfigError(f'gateway.compression.types: "{wrong[0]}" is not a type, "text/*" or "*+json"')
        self._known: dict[str, bool] = {}

    def compresses(self, content_type: str) -> bool:
        """Whether answers of this media type are compressed."""
        found = self._known.get(content_type)
        if found is None:
            if len(self._known) >= 1024:  # a handler may set any type
                self._known.clear()
            name = essence(content_type)
            found = self._known[content_type] = (
                name in self._exact or name.startswith(self._starts) or name.endswith(self._ends)
            )
        return found

    async def hook(self, request: Request, proceed: Proceed) -> Answer:
        """Compress the answer, if client, type and size allow it."""
        reply = await proceed(request)
        if type(reply) is not Reply:
            # A stream, or a subclass that has no complete body, such as the answer to a HEAD for a stream.
            return reply
        extra = reply.extra
        if reply.status == 304 or (reply.status == 206 and self.compresses(reply.content_type)):
            return _with(reply, reply.body, extra + _vary(extra))
        if reply.status not in _WHOLE or not self.compresses(reply.content_type):
            return reply
        headers = request.raw.headers
        size = len(reply.body)
        if extra and (
            not _EXCLUDING.isdisjoint(names_in(extra))
            or b"no-transform" in directives(value_of(extra, b"cache-control"))
        ):
            return reply
        # From here on the answer depends on Accept-Encoding, also when it stays as it is.
        extra += _vary(extra)
        choice = choose(",".join(headers.getall(hdrs.ACCEPT_ENCODING, ())), self._offered)
        if not choice.coding or not size or (size < self._minimum and choice.plain) or _tells_secrets(request):
            return _with(reply, reply.body, extra)
        compress = self._codings[choice.coding]
        body = compress(reply.body) if size <= INLINE_BYTES else await asyncio.to_thread(compress, reply.body)
        if len(body) >= size and choice.plain:
            return _with(reply, reply.body, extra)
        return _with(reply, body, _weakened(extra) + b"Content-Encoding: %b\r\n" % choice.coding.encode())


def _tells_secrets(request: Request) -> bool:
    """Whether a page of another site may choose part of the request, and the browser adds credentials (BREACH)."""
    headers = request.raw.headers
    if hdrs.COOKIE not in headers and hdrs.AUTHORIZATION not in headers:
        return False
    return any(site in ("cross-site", "same-site") for site in headers.getall(SEC_FETCH_SITE, ()))


def _vary(extra: bytes) -> bytes:
    vary = value_of(extra, b"vary")
    return b"" if vary is not None and (b"accept-encoding" in vary.lower() or vary.strip() == b"*") else _VARY


def _weakened(extra: bytes) -> bytes:
    """The lines of a compressed answer: it has no ranges, and its bytes are not those that a strong ETag stands for."""
    tag = value_of(extra, b"etag")
    extra = without(extra, b"accept-ranges")
    if tag is None or tag.startswith(b"W/"):
        return extra
    return without(extra, b"etag") + b"ETag: W/%b\r\n" % tag


def _with(reply: Reply, body: Any, extra: bytes) -> Reply:
    # A copy: a mount may keep its answer for many requests.
    return Reply(body, reply.content_type, reply.status, extra)

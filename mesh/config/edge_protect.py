"""The settings of the gateway's protection: limits of connections and requests, CORS, header fields, compression.

Owns: the types and the defaults. Leaves to others: the tree (config.settings), applying them (gateway.admission,
gateway.edge). The guide is docs/edge.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Struct, field

from mesh.config.values import (
    DURATION,
    DURATION_OR_ZERO,
    FLAG,
    SIZE,
    TEXT,
    TEXTS,
    Kind,
    choice,
    read_size,
    show_size,
    whole,
)

ResourcePolicy = Literal["same-origin", "same-site", "cross-origin", "off"]
OpenerPolicy = Literal["same-origin", "same-origin-allow-popups", "unsafe-none", "off"]
FrameOptions = Literal["deny", "sameorigin", "off"]

_SIZE_OR_ZERO = Kind('a size like "64MiB" or "16KiB"; "0B" switches it off', read_size, show_size)

#: Media types that become smaller when compressed.
_COMPRESSIBLE = (
    "text/*",
    "application/json",
    "*+json",
    "application/javascript",
    "application/xml",
    "*+xml",
    "application/msgpack",
    "application/wasm",
)


class EdgeLimits(Struct, frozen=True, kw_only=True):
    """The keys of [gateway] that limit connections and requests, and those about validators."""

    max_uri_bytes: Annotated[int, SIZE, "the longest request target"] = field(default=8190, name="max_uri")
    max_header_bytes: Annotated[int, SIZE, "the largest head of a request: its request line and all header fields"] = (
        field(default=32 * 2**10, name="max_header")
    )
    max_headers: Annotated[int, whole(1, 10_000), "header fields of one request"] = 100
    max_requests_per_connection: Annotated[
        int, whole(0), "requests that one connection may send before the gateway closes it; 0: no limit"
    ] = 0
    # Longer than the usual 60 s of a proxy in front, so that it is the proxy that closes an idle connection.
    keep_alive_s: Annotated[float, DURATION, "how long an idle connection is kept open"] = field(
        default=75.0, name="keep_alive"
    )
    max_json_depth: Annotated[int, whole(1, 900), "nested arrays and objects in a request body of JSON"] = 100
    max_inflation: Annotated[
        int, whole(2), "how many times larger than received a decompressed body beyond 1 MiB may be"
    ] = 500
    write_timeout_s: Annotated[
        float, DURATION_OR_ZERO, "how long a client may read nothing while an answer waits for it; 0: no limit"
    ] = field(default=30.0, name="write_timeout")
    min_read_rate_bytes: Annotated[
        int, _SIZE_OR_ZERO, "the minimum bytes per second that a client reads of an answer that waits; 0: no limit"
    ] = field(default=1024, name="min_read_rate")
    max_unsent_total_bytes: Annotated[
        int, SIZE, "answers held in memory for clients that have not read them; the slowest are closed beyond it"
    ] = field(default=256 * 2**20, name="max_unsent_total")
    etag: Annotated[bool, FLAG, "answer GET with an ETag, conditional requests and ranges on every route"] = False
    max_ranges: Annotated[int, whole(1, 100), "ranges of one request that are answered"] = 8


class CorsSettings(Struct, frozen=True, kw_only=True):
    """[gateway.cors]: what web pages of the listed origins may send and read; see docs/edge.md."""

    credentials: Annotated[bool, FLAG, 'pages may send cookies; not with the origin "*"'] = False
    headers: Annotated[
        list[str], TEXTS, 'request header fields that pages may send; "*" is every field that a page asks for'
    ] = field(default_factory=lambda: ["*"])
    expose: Annotated[
        list[str], TEXTS, 'answer header fields that pages may read; "*" is every field, only without credentials'
    ] = field(default_factory=lambda: ["*"])
    max_age_s: Annotated[float, DURATION_OR_ZERO, "how long browsers may keep the answer to a preflight"] = field(
        default=600.0, name="max_age"
    )
    private_network: Annotated[bool, FLAG, "pages on public networks may call this gateway on a private one"] = False


class HeaderSettings(Struct, frozen=True, kw_only=True):
    """[gateway.headers]: header fields of every answer that does not set them itself; "off" leaves one out. See
    docs/edge.md."""

    secure: Annotated[bool, FLAG, "send the security header fields below"] = False
    content_security_policy: Annotated[str, TEXT, "Content-Security-Policy"] = (
        "default-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    )
    frame_options: Annotated[FrameOptions, choice("deny", "sameorigin", "off"), "X-Frame-Options"] = "deny"
    referrer_policy: Annotated[str, TEXT, "Referrer-Policy"] = "strict-origin-when-cross-origin"
    permissions_policy: Annotated[str, TEXT, "Permissions-Policy"] = (
        "camera=(), geolocation=(), microphone=(), payment=(), usb=()"
    )
    opener_policy: Annotated[
        OpenerPolicy,
        choice("same-origin", "same-origin-allow-popups", "unsafe-none", "off"),
        "Cross-Origin-Opener-Policy",
    ] = "same-origin"
    resource_policy: Annotated[
        ResourcePolicy,
        choice("same-origin", "same-site", "cross-origin", "off"),
        "Cross-Origin-Resource-Policy",
    ] = "same-origin"
    extra: Annotated[
        list[str], TEXTS, 'further lines, such as "X-Robots-Tag: noindex"; sent without `secure`, too'
    ] = []


class CompressionSettings(Struct, frozen=True, kw_only=True):
    """[gateway.compression]: compressed answers; see docs/edge.md."""

    codings: Annotated[
        list[str], TEXTS, 'the codings, the preferred one first: "zstd", "br", "gzip"; empty: no compression'
    ] = []
    minimum_bytes: Annotated[int, SIZE, "smaller bodies are not compressed"] = field(default=1024, name="minimum")
    gzip_level: Annotated[int, whole(1, 9), "effort of gzip"] = 5
    br_level: Annotated[int, whole(0, 11), "effort of Brotli"] = 4
    zstd_level: Annotated[int, whole(1, 19), "effort of Zstandard"] = 3
    types: Annotated[
        list[str], TEXTS, 'media types to compress; "text/*" is every text, "*+json" every type with this suffix'
    ] = field(default_factory=lambda: list(_COMPRESSIBLE))

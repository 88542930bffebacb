"""Compression: which coding, which answers, and what caches are told."""

from __future__ import annotations

import asyncio
import gzip
import sys
from collections.abc import Callable
from typing import Any

import brotli
import msgspec
import pytest
import zstandard
from gateway_fakes import FakeNode
from gateway_front import Front
from gateway_shop import open_shop

from mesh.calls.http_response import Response, SetCookie
from mesh.config import Settings
from mesh.config.edge_protect import CompressionSettings
from mesh.discovery.record import EdgePolicy, RouteRecord
from mesh.errors import ConfigError
from mesh.gateway.edge.accept_encoding import choose
from mesh.gateway.server import Gateway

OFFERED = ("zstd", "br", "gzip")
TEXT = "abc " * 1000
DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body),
}


@pytest.mark.parametrize(
    ("header", "coding", "plain"),
    [
        ("", "", True),
        ("gzip", "gzip", True),
        ("x-gzip", "gzip", True),
        ("GZIP", "gzip", True),
        ("gzip, br", "br", True),
        ("gzip, deflate, br, zstd", "zstd", True),
        ("br;q=0.5, gzip;q=0.8", "gzip", True),
        ("br; q=0.5 , gzip ;q=0.5", "br", True),
        ("gzip;q=0", "", True),
        ("gzip;q=0.000", "", True),
        ("*", "zstd", True),
        ("*;q=0", "", False),
        ("zstd;q=0, *", "br", True),
        ("identity", "", True),
        ("identity;q=1, gzip;q=0.5", "", True),
        ("identity;q=0.5, gzip", "gzip", True),
        ("identity;q=0, gzip", "gzip", False),
        ("*;q=0, gzip;q=0.1", "gzip", False),
        ("*;q=0, identity", "", True),
        ("deflate, compress", "", True),
        ("gzip;q=2", "", True),
        ("gzip;q=abc", "", True),
        ("gzip;level=9", "", True),
        ("gzip" + "," * 1000, "", True),
    ],
)
def test_the_coding_is_negotiated(header: str, coding: str, plain: bool) -> None:
    assert choose(header, OFFERED) == (coding, plain)


def compressing(settings: Settings, **values: Any) -> Settings:
    found = CompressionSettings(**{"codings": list(OFFERED), "minimum_bytes": 100, **values})
    return msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, compression=found))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return compressing(settings)


@pytest.fixture
def shop(front: Front) -> Front:
    async def text(size: int = 4000) -> str:
        return (TEXT * (size // len(TEXT) + 1))[:size]

    async def noise() -> str:
        return "".join(chr(0x4E00 + (n * 7919) % 20_000) for n in range(100))

    async def image() -> bytes:
        return bytes(4000)

    async def cookie() -> Response[str]:
        return Response(TEXT, cookies=[SetCookie(name="a", value="b")])

    async def tagged() -> Response[str]:
        return Response(TEXT, headers={"ETag": '"v1"', "Vary": "Accept-Language"})

    async def fixed() -> Response[str]:
        return Response(TEXT, headers={"Cache-Control": "public, No-Transform"})

    async def packed() -> Response[bytes]:
        return Response(gzip.compress(TEXT.encode(), mtime=0), headers={"Content-Encoding": "gzip"})

    async def summed() -> Response[str]:
        return Response(TEXT, headers={"Content-Digest": "sha-256=:x:"})

    functions = {
        "text": text,
        "noise": noise,
        "image": image,
        "cookie": cookie,
        "tagged": tagged,
        "fixed": fixed,
        "packed": packed,
        "summed": summed,
    }
    records = [
        RouteRecord("GET", f"/{name}", name, {"size": "query"} if name == "text" else {}, produces=kind)
        for name, kind in zip(
            functions, ["text/plain", "", "image/png", "text/plain", "", "", "text/plain", ""], strict=True
        )
    ]
    records.append(RouteRecord("GET", "/cached", "text", produces="text/plain", edge=EdgePolicy(cache="max-age=9")))
    front.node.serve("texts", records, **functions)
    open_shop(front.node)
    return front


async def raw(shop: Front, path: str, *lines: str, verb: str = "GET") -> tuple[dict[str, list[str]], bytes, int]:
    """Header fields, body and status, as they are on the wire."""
    head = "".join(f"{line}\r\n" for line in ("Host: localhost", "Connection: close", *lines))
    reader, writer = await shop.raw(f"{verb} {path} HTTP/1.1\r\n{head}\r\n".encode())
    told, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    fields: dict[str, list[str]] = {}
    for line in told.decode().split("\r\n")[1:]:
        name, _, value = line.partition(": ")
        fields.setdefault(name.lower(), []).append(value)
    return fields, body, int(told[9:12])


@pytest.mark.parametrize("coding", OFFERED)
@pytest.mark.parametrize("size", [4000, 300_000])
async def test_each_coding_can_be_decoded(shop: Front, coding: str, size: int) -> None:
    """Small bodies at once, large ones in a thread."""
    fields, body, status = await raw(shop, f"/text?size={size}", f"Accept-Encoding: {coding}")
    assert (status, fields["content-encoding"], fields["vary"]) == (200, [coding], ["Accept-Encoding"])
    assert fields["content-length"] == [str(len(body))]
    assert len(body) < size / 10
    assert DECODERS[coding](body) == (TEXT * 100).encode()[:size]


async def test_head_has_the_fields_of_get(shop: Front) -> None:
    got, _, _ = await raw(shop, "/text", "Accept-Encoding: br")
    asked, body, _ = await raw(shop, "/text", "Accept-Encoding: br", verb="HEAD")
    assert body == b""
    assert {name: got[name] for name in ("content-length", "content-encoding", "vary")} == {
        name: asked[name] for name in ("content-length", "content-encoding", "vary")
    }


@pytest.mark.parametrize(
    ("path", "vary"),
    [
        ("/text?size=99", ["Accept-Encoding"]),
        ("/image", None),
        ("/cookie", None),
        ("/fixed", None),
        ("/packed", None),
        ("/summed", None),
        ("/count/3", None),
        ("/nowhere", None),
    ],
)
async def test_other_answers_stay_as_they_are(shop: Front, path: str, vary: list[str] | None) -> None:
    """Small ones, other types, cookies, no-transform, what is packed already, digests, streams and errors."""
    fields, body, _ = await raw(shop, path, "Accept-Encoding: gzip, br, zstd", "Accept: application/x-ndjson, */*")
    assert fields.get("content-encoding") == (["gzip"] if path == "/packed" else None)
    assert fields.get("vary") == vary
    assert body


async def test_a_client_that_refuses_plain_bytes_gets_small_ones_compressed(shop: Front) -> None:
    fields, body, _ = await raw(shop, "/text?size=10", "Accept-Encoding: gzip, identity;q=0")
    assert fields["content-encoding"] == ["gzip"]
    assert gzip.decompress(body) == b"abc abc ab"
    fields, body, status = await raw(shop, "/text", "Accept-Encoding: *;q=0")
    assert (status, "content-encoding" in fields, len(body)) == (200, False, 4000)


async def test_a_compressed_answer_has_a_weak_etag(shop: Front) -> None:
    fields, _, _ = await raw(shop, "/tagged", "Accept-Encoding: gzip")
    assert fields["etag"] == ['W/"v1"']
    assert fields["vary"] == ["Accept-Language", "Accept-Encoding"]
    fields, _, _ = await raw(shop, "/tagged")
    assert fields["etag"] == ['"v1"']
    assert fields["vary"] == ["Accept-Language", "Accept-Encoding"]


async def test_a_compressed_answer_is_revalidated(shop: Front) -> None:
    fields, _, _ = await raw(shop, "/cached", "Accept-Encoding: gzip")
    assert fields["etag"][0].startswith('W/"')
    assert "accept-ranges" not in fields
    again, body, status = await raw(shop, "/cached", "Accept-Encoding: gzip", f"If-None-Match: {fields['etag'][0]}")
    assert (status, body, again["cache-control"]) == (304, b"", ["max-age=9"])
    assert "Accept-Encoding" in again["vary"]
    # A part is of the plain answer: the tag of the compressed one does not allow it.
    part, body, status = await raw(
        shop, "/cached", "Accept-Encoding: gzip", "Range: bytes=0-9", f"If-Range: {fields['etag'][0]}"
    )
    assert (status, part["content-encoding"]) == (200, ["gzip"])
    part, body, status = await raw(shop, "/cached", "Accept-Encoding: gzip", "Range: bytes=0-9")
    assert (status, body, "content-encoding" in part) == (206, b"abc abc ab", False)


@pytest.mark.parametrize(
    ("lines", "packed"),
    [
        (["Cookie: a=b"], True),
        (["Cookie: a=b", "Sec-Fetch-Site: same-origin"], True),
        (["Cookie: a=b", "Sec-Fetch-Site: cross-site"], False),
        (["Authorization: Bearer x", "Sec-Fetch-Site: same-site"], False),
        (["Sec-Fetch-Site: cross-site"], True),
    ],
)
async def test_a_page_of_another_site_learns_nothing_from_lengths(shop: Front, lines: list[str], packed: bool) -> None:
    fields, _, _ = await raw(shop, "/text", "Accept-Encoding: gzip", *lines)
    assert ("content-encoding" in fields) is packed


async def test_others_are_answered_while_a_large_answer_is_compressed(shop: Front) -> None:
    large = asyncio.create_task(shop.get("/text?size=30000000", headers={"Accept-Encoding": "gzip"}))
    answered = 0
    while not large.done():
        assert (await shop.get("/hello/x")).status == 200
        answered += 1
    assert (await large).status == 200
    assert answered > 3


@pytest.mark.parametrize(
    "values", [{"codings": ["deflate"]}, {"codings": ["gzip"], "types": ["te*t"]}, {"codings": ["gzip", "lzma"]}]
)
async def test_wrong_settings_are_found_at_the_start(node: FakeNode, settings: Settings, values: Any) -> None:
    with pytest.raises(ConfigError):
        Gateway(node, compressing(settings, **values))


@pytest.mark.parametrize(("coding", "module"), [("br", "brotli"), ("zstd", "zstandard")])
async def test_a_missing_library_is_named(
    node: FakeNode, settings: Settings, monkeypatch: pytest.MonkeyPatch, coding: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"zeromesh\[compression\]"):
        Gateway(node, compressing(settings, codings=[coding]))

"""Static files: what is found, what never is, and how it is sent."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front, Told, eventually, open_front
from gateway_shop import open_shop
from multidict import CIMultiDict, CIMultiDictProxy

from mesh.config import Settings
from mesh.config.edge_static import STATICS
from mesh.gateway.file_types import IMMUTABLE, accepted_codings, cache_control, content_type, is_hashed
from mesh.gateway.mounts import BadMount
from mesh.gateway.ranges import UNSATISFIABLE, Span, span_of, status_of
from mesh.gateway.server import Gateway

MIB = 2**20
LARGE = os.urandom(3 * MIB)
Open = Callable[..., Awaitable[Front]]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A built application, beside things that are nobody's business."""
    root = tmp_path / "project"
    dist = root / "web" / "dist"
    (dist / "assets").mkdir(parents=True)
    (dist / "help").mkdir()
    (dist / ".well-known").mkdir()
    (dist / ".git").mkdir()
    files: dict[str, str | bytes] = {
        "index.html": "<h1>home</h1>",
        "help/index.html": "<h1>help</h1>",
        "robots.txt": "User-agent: *",
        "assets/app.3f2a1b4c.js": "let a = 1",
        "assets/plain.css": "a {}",
        "assets/large.bin": LARGE,
        "grüezi wohl.txt": "hoi",
        ".env": "CLASSIFIED",
        ".git/config": "CLASSIFIED",
        ".well-known/security.txt": "Contact: x",
        "assets/.hidden": "CLASSIFIED",
        "packed.js": "let packed = 1",
        "packed.js.gz": gzip.compress(b"let packed = 1"),
        "packed.js.br": b"brotli",
    }
    for name, content in files.items():
        (dist / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (root / "secret.txt").write_text("CLASSIFIED")
    (root / "mesh.toml").write_text("")
    (dist / "out.txt").symlink_to(root / "secret.txt")
    (dist / "up").symlink_to(root)
    (dist / "inside.txt").symlink_to("robots.txt")
    (dist / "alias").symlink_to("assets")
    (dist / "hidden-link").symlink_to(".env")
    (dist / "loop").symlink_to("loop")
    os.mkfifo(dist / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        before = Path.cwd()
        os.chdir(dist)
        sock.bind("socket")
        os.chdir(before)
    return root


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


@pytest.fixture
def opened(settings: Settings, stack: AsyncExitStack, node: FakeNode, site: Path) -> Open:
    """Makes a gateway with static files."""

    async def make(static: dict[str, Any]) -> Front:
        own = msgspec.structs.replace(settings.gateway, static=STATICS.read(static))
        gateway = Gateway(node, msgspec.structs.replace(settings, gateway=own, root=site))
        return await open_front(stack, node, gateway)

    return make


@pytest.fixture
async def files(opened: Open) -> Front:
    return await opened({"/": "web/dist"})


async def plain(front: Front, path: str, **headers: str) -> Told:
    """A request without aiohttp's own Accept-Encoding."""
    return await front.get(path, headers={"Accept-Encoding": "identity", **headers})


# --- what is found ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "kind", "cache"),
    [
        ("/", b"<h1>home</h1>", "text/html; charset=utf-8", "no-cache"),
        ("/index.html", b"<h1>home</h1>", "text/html; charset=utf-8", "no-cache"),
        ("/help/", b"<h1>help</h1>", "text/html; charset=utf-8", "no-cache"),
        ("/robots.txt", b"User-agent: *", "text/plain; charset=utf-8", "no-cache"),
        ("/assets/app.3f2a1b4c.js", b"let a = 1", "text/javascript; charset=utf-8", IMMUTABLE),
        ("/assets/large.bin", LARGE, "application/octet-stream", "no-cache"),
        ("/gr%C3%BCezi%20wohl.txt", b"hoi", "text/plain; charset=utf-8", "no-cache"),
        ("/.well-known/security.txt", b"Contact: x", "text/plain; charset=utf-8", "no-cache"),
        ("/inside.txt", b"User-agent: *", "text/plain; charset=utf-8", "no-cache"),
        ("/alias/plain.css", b"a {}", "text/css; charset=utf-8", "no-cache"),
    ],
)
async def test_files_are_sent_with_their_types(files: Front, path: str, body: bytes, kind: str, cache: str) -> None:
    told = await plain(files, path)
    assert (told.status, told.body, told.kind) == (200, body, kind)
    assert told.headers["Cache-Control"] == cache
    assert told.headers["X-Content-Type-Options"] == "nosniff"
    assert told.headers["Accept-Ranges"] == "bytes"
    assert int(told.headers["Content-Length"]) == len(body)
    head = await files.ask("HEAD", path, headers={"Accept-Encoding": "identity"})
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "Content-Type", "ETag", "Last-Modified", "Cache-Control"):
        assert head.headers[name] == told.headers[name]


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/%2e%2e%2fsecret.txt", "/..%5csecret.txt",
        "/..\\secret.txt", "/assets/../../../secret.txt", "/assets/..%2f..%2f..%2fsecret.txt", "/%252e%252e/secret.txt",
        "//secret.txt", "/./index.html", "/%2e/index.html", "//etc/passwd", "/%2fetc/passwd", "/assets//plain.css",
        "/index.html%00", "/index.html%00.txt", "/%c0%ae%c0%ae/secret.txt", "/%ff", "/index.html/", "/index.html/x",
        "/out.txt", "/up/secret.txt", "/loop", "/hidden-link", "/.env", "/.git/config",
        "/assets/.hidden", "/%2eenv", "/.ENV", "/.well-known/../.env", "/pipe", "/socket", "/assets", "/assets/",
        "/.well-known", "/.well-known/", "/nothing", "/nothing/", "/" + "a" * 300, "/" + "a/" * 2000,  "/INDEX.HTML",
        "/index.html;x", "/~root", "/index.html::$DATA", "/index.html.", "/%E2%80%A5/secret.txt",
    ],
)  # fmt: skip
async def test_nothing_else_is_found(files: Front, path: str) -> None:
    """No other encoding, no link out of the directory, no hidden file, no listing, nothing that is not a file."""
    reader, _ = await files.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    told = await asyncio.wait_for(reader.read(), 5)
    assert told[9:12] in (b"404", b"400", b"403"), told[:300]
    assert b"CLASSIFIED" not in told


async def test_a_directory_leads_to_its_page(files: Front) -> None:
    told = await files.get("/help?x=1")
    assert (told.status, told.headers["Location"]) == (301, "/help/?x=1")


async def test_only_reading_is_possible(files: Front) -> None:
    for path in ("/robots.txt", "/help"):
        told = await files.post(path, b"{}")
        assert (told.status, told.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    told = await files.ask("OPTIONS", "/robots.txt")
    assert (told.status, told.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
    for verb in ("POST", "OPTIONS", "GET"):
        told = await files.ask(verb, "/nothing")
        assert (told.status, told.json["code"]) == (404, "unknown_route")


async def test_routes_and_mounts_come_first(opened: Open, node: FakeNode, site: Path) -> None:
    open_shop(node)
    (site / "web/dist/measure").write_text("a file")
    (site / "web/dist/livez").write_text("a file")
    front = await opened({"/": "web/dist", "/assets": {"dir": "web/dist/help"}})
    assert (await front.post("/measure", b"abc", "image/png")).json == 3
    assert (await front.get("/livez")).body != b"a file"
    assert (await plain(front, "/assets/")).body == b"<h1>help</h1>"
    assert (await front.get("/assets/app.3f2a1b4c.js")).status == 404
    told = await front.get("/assets")
    assert (told.status, told.headers["Location"]) == (301, "/assets/")


async def test_a_single_page_application(opened: Open) -> None:
    """Pages that only the application knows get its index page; other things that are missing are missing."""
    front = await opened({"/": {"dir": "web/dist", "spa": True}})
    page = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Accept-Encoding": "identity"}
    for path in ("/orders/7", "/orders/7/", "/nothing.js"):
        told = await front.get(path, headers=page)
        assert (told.status, told.body, told.headers["Cache-Control"]) == (200, b"<h1>home</h1>", "no-cache")
    assert (await front.get("/nothing.js", headers={"Accept": "*/*"})).status == 404
    assert (await front.get("/orders/7", headers={"Accept": "application/json"})).status == 404
    assert (await front.ask("POST", "/orders/7", headers=page)).status == 404
    assert (await front.get("/%2e%2e/secret.txt", headers=page)).status == 404
    assert (await front.get("/robots.txt", headers=page)).body == b"User-agent: *"


async def test_files_do_not_wait_for_the_hubs(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path without a file does: a service may declare it."""
    front = await opened({"/": {"dir": "web/dist", "spa": True}})
    monkeypatch.setattr(type(front.gateway.front), "may_say_unknown", lambda _: False)
    assert (await plain(front, "/robots.txt")).status == 200
    for verb, accept in (("GET", "text/html"), ("GET", "*/*"), ("POST", "*/*")):
        told = await front.ask(verb, "/orders/7", headers={"Accept": accept})
        assert (told.status, told.json["code"]) == (503, "unavailable")


# --- how it is sent -----------------------------------------------------------------------------


async def test_a_copy_that_is_current_is_not_sent_again(files: Front) -> None:
    told = await plain(files, "/robots.txt")
    for known in (
        {"If-None-Match": told.headers["ETag"]},
        {"If-None-Match": f'"x", W/{told.headers["ETag"]}'},
        {"If-None-Match": "*"},
        {"If-Modified-Since": told.headers["Last-Modified"]},
    ):
        again = await plain(files, "/robots.txt", **known)
        assert (again.status, again.body) == (304, b"")
        assert again.headers["ETag"] == told.headers["ETag"]
        assert "Content-Length" not in again.headers
    again = await plain(
        files, "/robots.txt", **{"If-None-Match": '"other"', "If-Modified-Since": told.headers["Last-Modified"]}
    )
    assert again.status == 200
    again = await plain(files, "/robots.txt", **{"If-Match": '"other"'})
    assert (again.status, again.json["code"]) == (412, "precondition_failed")


async def test_a_download_is_resumed(files: Front) -> None:
    """With the same version only."""
    told = await plain(files, "/assets/large.bin")
    part = await plain(files, "/assets/large.bin", Range="bytes=1000000-", **{"If-Range": told.headers["ETag"]})
    assert (part.status, part.body) == (206, LARGE[1_000_000:])
    assert part.headers["Content-Range"] == f"bytes 1000000-{len(LARGE) - 1}/{len(LARGE)}"
    part = await plain(files, "/assets/large.bin", Range="bytes=-5")
    assert (part.status, part.body) == (206, LARGE[-5:])
    part = await plain(files, "/assets/large.bin", Range="bytes=5-9")
    assert (part.status, part.body, part.headers["Content-Length"]) == (206, LARGE[5:10], "5")
    part = await plain(files, "/assets/large.bin", Range="bytes=1000000-", **{"If-Range": '"other"'})
    assert (part.status, part.body) == (200, LARGE)
    part = await plain(files, "/assets/large.bin", Range="bytes=0-1,4-5")
    assert part.status == 200
    part = await plain(files, "/assets/large.bin", Range=f"bytes={len(LARGE)}-")
    assert (part.status, part.json["code"]) == (416, "range_not_satisfiable")
    assert part.headers["Content-Range"] == f"bytes */{len(LARGE)}"


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("br, gzip", "br"),
        ("gzip", "gzip"),
        ("gzip;q=1, br;q=0.5", "gzip"),
        ("br;q=0, *", "gzip"),
        ("identity", ""),
        ("zstd", ""),
    ],
)
async def test_compressed_neighbours(files: Front, site: Path, accept: str, coding: str) -> None:
    told = await files.get("/packed.js", headers={"Accept-Encoding": accept})
    assert told.headers.get("Content-Encoding", "") == coding
    assert told.headers["Vary"] == "Accept-Encoding"
    assert told.kind == "text/javascript; charset=utf-8"
    ending = {"br": ".br", "gzip": ".gz", "": ""}[coding]
    assert told.body == (site / f"web/dist/packed.js{ending}").read_bytes()
    other = await plain(files, "/packed.js")
    assert (other.headers["ETag"] == told.headers["ETag"]) == (not coding)


async def test_a_neighbour_of_an_earlier_build_is_not_sent(files: Front, site: Path) -> None:
    for ending in (".br", ".gz"):
        os.utime(site / f"web/dist/packed.js{ending}", (1, 1))
    told = await files.get("/packed.js", headers={"Accept-Encoding": "br, gzip"})
    assert (told.body, "Content-Encoding" in told.headers) == (b"let packed = 1", False)


async def test_a_file_that_is_replaced_is_sent_as_it_was(files: Front, site: Path) -> None:
    """The client that reads the old one gets all of it, and the next one the new one."""
    large = site / "web/dist/assets/large.bin"
    old, new = os.urandom(40 * MIB), os.urandom(1000)
    large.write_bytes(old)
    reader, _ = await files.raw(b"GET /assets/large.bin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    (site / "new").write_bytes(new)
    (site / "new").rename(large)
    assert await reader.read() == old
    assert (await plain(files, "/assets/large.bin")).body == new


async def test_a_file_that_is_written_over_is_broken_off(files: Front, site: Path) -> None:
    """Never half of the old one and half of the new one."""
    large = site / "web/dist/assets/large.bin"
    large.write_bytes(bytes(40 * MIB))
    reader, _ = await files.raw(b"GET /assets/large.bin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    with large.open("r+b") as file:
        file.write(b"x" * (40 * MIB))
    body = await reader.read()
    assert len(body) < 40 * MIB
    assert b"x" not in body


async def test_a_release_that_replaces_the_directory(opened: Open, site: Path) -> None:
    for release in ("1", "2"):
        (site / "releases" / release).mkdir(parents=True)
        (site / "releases" / release / "index.html").write_text(release)
    (site / "current").symlink_to("releases/1")
    front = await opened({"/": "current"})
    assert (await plain(front, "/")).body == b"1"
    (site / "next").symlink_to("releases/2")
    (site / "next").rename(site / "current")
    assert (await plain(front, "/")).body == b"2"
    (site / "current").unlink()
    assert (await plain(front, "/")).status == 404


async def test_a_large_file_is_never_in_memory(files: Front, site: Path) -> None:
    with (site / "web/dist/assets/large.bin").open("wb") as file:
        file.truncate(200 * MIB)
    process = psutil.Process()
    before = process.memory_info().rss
    size = 0
    async with files.session.get(f"{files.url}/assets/large.bin") as response:
        await asyncio.sleep(0.2)
        async for chunk in response.content.iter_any():
            size += len(chunk)
    assert size == 200 * MIB
    assert process.memory_info().rss - before <= 16 * MIB


async def test_no_descriptor_is_left_open(files: Front, site: Path) -> None:
    """Whatever becomes of the requests."""
    process = psutil.Process()
    await plain(files, "/")
    before = process.num_fds()
    page = "/assets/large.bin"
    for path in ("/", page, "/packed.js", "/out.txt", "/assets", "/help", "/nothing", "/alias/plain.css", "/pipe"):
        for verb in ("GET", "HEAD", "POST"):
            await files.ask(verb, path, headers={"Accept-Encoding": "gzip"})
    told = await plain(files, page)
    await plain(files, page, **{"If-None-Match": told.headers["ETag"]})
    await plain(files, page, Range="bytes=99999999-")
    for _ in range(5):
        reader, writer = await files.raw(b"GET /assets/large.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    await eventually(lambda: process.num_fds() <= before, "all are closed")


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [{"/": "nowhere"}, {"/": "."}, {"/": ".."}, {"/": "/"}, {"/": "mesh.toml"}])
async def test_directories_that_cannot_be_served(opened: Open, static: dict[str, str]) -> None:
    """One that is missing, and one that would publish mesh.toml."""
    with pytest.raises(BadMount):
        await opened(static)


@pytest.mark.parametrize(
    "value",
    [{"x": "d"}, {"/": {"spa": True}}, {"/": {"dir": "d", "cach": ""}}, {"/": {"dir": "d", "cache": "a\r\nb"}}, 3],
)
def test_wrong_settings_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^(it |$)"):
        STATICS.read(value)


def test_settings_are_shown_as_they_are_written() -> None:
    value = {"/": {"dir": "web/dist", "spa": True}, "/a": "b"}
    assert STATICS.show(STATICS.read(value)) == value


# --- pure parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hashed"),
    [
        ("index-BQk2pXo1.js", True), ("main.3f2a1b4c5d6e7f8a9b0c.js", True), ("app-5IHKAMJE.js", True),
        ("chunk.0a1b2c3d.css.map", True), ("index-B-k2pXo1.js", True), ("logo.d41d8cd9.svg", True),
        ("jquery.validate.js", False), ("my-document.pdf", False), ("photo-20241231.jpg", False),
        ("app-release10.js", False), ("photo-Photo123.jpg", False), ("index.html", False), ("3f2a1b4c.js", False),
        ("bootstrap.bundle.min.js", False), ("report-2024-final.pdf", False),
    ],
)  # fmt: skip
def test_names_with_a_hash(name: str, hashed: bool) -> None:
    assert is_hashed(name) == hashed


def test_rules_of_caching() -> None:
    assert cache_control("a/x.js", "text/javascript", "max-age=5", None) == "max-age=5"
    assert cache_control("a/x.js", "text/javascript", "max-age=5", ["a/*"]) == IMMUTABLE
    assert cache_control("a/app.3f2a1b4c.js", "text/javascript", "max-age=5", []) == "max-age=5"
    assert cache_control("a.3f2a1b4c.html", "text/html; charset=utf-8", "max-age=5", ["*"]) == "no-cache"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.JS", "text/javascript; charset=utf-8"), ("a.svg", "image/svg+xml; charset=utf-8"), ("a.png", "image/png"),
        ("a.wasm", "application/wasm"), ("a", "application/octet-stream"), ("a.unknown", "application/octet-stream"),
        ("a.webmanifest", "application/manifest+json; charset=utf-8"), ("a.woff2", "font/woff2"),
    ],
)  # fmt: skip
def test_types(name: str, kind: str) -> None:
    assert content_type(name) == kind


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (None, []),
        ("", []),
        ("gzip", ["gzip"]),
        ("*", ["br", "zstd", "gzip"]),
        ("gzip, br", ["br", "gzip"]),
        ("br;q=x", []),
    ],
)
def test_codings(header: str | None, names: list[str]) -> None:
    assert [name for name, _ in accepted_codings(header)] == names


def fields(**given: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict({name.replace("_", "-"): value for name, value in given.items()}))


@pytest.mark.parametrize(
    ("value", "span"),
    [
        ("bytes=0-", Span(0, 10)), ("bytes=0-0", Span(0, 1)), ("bytes=9-99", Span(9, 10)), ("bytes=-3", Span(7, 10)),
        ("bytes=-99", Span(0, 10)), ("BYTES=1-2", Span(1, 3)), ("bytes=10-", UNSATISFIABLE),
        ("bytes=-0", UNSATISFIABLE), ("bytes=5-4", None), ("bytes=-", None), ("bytes=a-b", None),
        ("lines=1-2", None), ("bytes=1-2,3-4", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)  # fmt: skip
def test_spans(value: str, span: Span | None) -> None:
    assert span_of(fields(Range=value), 10, '"e"', 0) == span


DATE = "Mon, 30 Nov 2026 12:00:00 GMT"
AT = 1_796_040_000


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 200), ({"If_None_Match": '"e"'}, 304), ({"If_None_Match": 'W/"e"'}, 304),
        ({"If_None_Match": '"f", "e"'}, 304), ({"If_None_Match": '"f"'}, 200),
        ({"If_None_Match": "nonsense"}, 200), ({"If_Match": '"f"'}, 412),
        ({"If_Match": 'W/"e"'}, 412), ({"If_Match": "*"}, 200), ({"If_Modified_Since": DATE}, 304),
        ({"If_Modified_Since": "yesterday"}, 200), ({"If_Unmodified_Since": DATE}, 200),
        ({"If_Unmodified_Since": "Mon, 30 Nov 2020 12:00:00 GMT"}, 412),
        ({"If_None_Match": '"f"', "If_Modified_Since": DATE}, 200),
    ],
)  # fmt: skip
def test_conditions(given: dict[str, str], status: int) -> None:
    assert status_of(fields(**given), '"e"', AT) == status

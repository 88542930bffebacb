"""Mounts of other packages: how they are found, what their handlers get, and what becomes of their failures."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front, eventually
from gateway_shop import open_shop
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

import mesh
from mesh.config import Settings
from mesh.discovery.record import RouteRecord
from mesh.errors import ServiceError, SetupError
from mesh.gateway import app
from mesh.gateway.mounts import BadMount, Mount, Reply, Request, Stream
from mesh.gateway.mounts.external import External, load
from mesh.gateway.server import Gateway
from mesh.testing import Mesh


class Closed(ServiceError):
    code = "closed"
    status = 409


class Shop:
    """A mount with one of everything; `events` tells what happened to it."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def handle(self, request: Request) -> Any:
        what = request.segments[0] if request.segments else ""
        found: Callable[[Request], Any] = getattr(self, what or "page")
        answer = found(request)
        return await answer if asyncio.iscoroutine(answer) else answer

    def page(self, request: Request) -> Reply:
        shown = {
            "method": request.method,
            "path": request.path,
            "segments": request.segments,
            "query": request.query,
            "tenant": request.headers.get("x-tenant"),
            "client": request.client,
            "trace": request.trace,
            "left": 0 < request.remaining_s <= request.timeout_s,
        }
        return Reply.json(shown, status=203, headers={"X-A": ["1", "2"]})

    kept = Reply.of(b"kept", content_type="text/plain")

    def keeps(self, request: Request) -> Reply:
        return self.kept

    def text(self, request: Request) -> Reply:
        request.add_header("X-Added", "yes")
        return Reply.of("grüezi")

    async def echo(self, request: Request) -> Reply:
        return Reply.of(await request.body(), content_type="image/png")

    def refuses(self, request: Request) -> Reply:
        request.add_header("X-Added", "yes")
        raise Closed("the shop is closed", details={"until": "8"})

    def breaks(self, request: Request) -> Reply:
        raise ZeroDivisionError("secret")

    def forgets(self, request: Request) -> None:
        return None

    def injects(self, request: Request) -> Reply:
        return Reply.of(b"", headers={"X-A": request.query["a"][0]})

    async def waits(self, request: Request) -> Reply:
        self.events.append("waits")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        return Reply()

    def streams(self, request: Request) -> Stream:
        return Stream(self._items(int(request.query["n"][0])), "text/plain", headers={"X-A": "b"})

    async def _items(self, n: int) -> AsyncIterator[bytes]:
        try:
            for i in range(n):
                yield b"%d\n" % i
                await asyncio.sleep(0.001)
        finally:
            self.events.append("closed")

    def early(self, request: Request) -> Stream:
        async def items() -> AsyncIterator[bytes]:
            raise Closed("the shop is closed")
            yield b""

        return Stream(items())

    def late(self, request: Request) -> Stream:
        async def items() -> AsyncIterator[bytes]:
            yield b"begin"
            await asyncio.sleep(0.01)
            raise ZeroDivisionError("secret")

        return Stream(items())

    async def calls(self, request: Request) -> Reply:
        return Reply.json(await request.call("greeter.hello", "you"))


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
async def mounted(shop: Shop, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Front]:
    node = FakeNode()
    open_shop(node)
    mount = Mount(prefix="/their/shop", handler=shop.handle, methods=("GET", "POST"))
    gateway = Gateway(node, settings, [External(mount, "their.shop:mount")])
    server = gateway.make_server()
    listener = app.bind("127.0.0.1", 0)
    accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
    async with aiohttp.ClientSession() as session:
        front = Front(node, gateway, server, accepting, listener.getsockname(), session)
        yield front
        for writer in front.opened:
            writer.close()
    accepting.close()
    await server.shutdown(0.2)


def counted(front: Front) -> dict[tuple[str, str], Any]:
    """Requests and errors by (service, method) of the side http."""
    found: Any = front.node.recorder.snapshot()
    return {(each["service"], each["method"]): each for each in found["methods"] if each["side"] == "http"}


# --- what a handler gets and gives ----------------------------------------------------------------


async def test_a_handler_gets_the_request(mounted: Front) -> None:
    """Path, query and header fields, client, trace and deadline; and sets status and header fields."""
    told = await mounted.get("/their/shop/page/a%20b?x=1&x=2&y=", headers={"X-Tenant": "t"})
    assert (told.status, told.headers.getall("X-A")) == (203, ["1", "2"])
    assert told.json == {
        "method": "GET",
        "path": "/their/shop/page/a%20b",
        "segments": ["page", "a b"],
        "query": {"x": ["1", "2"], "y": [""]},
        "tenant": "t",
        "client": "127.0.0.1",
        "trace": told.headers["traceparent"],
        "left": True,
    }
    told = await mounted.get("/their/shop/text")
    assert (told.body.decode(), told.kind, told.headers["X-Added"]) == ("grüezi", "text/plain; charset=utf-8", "yes")


async def test_the_body_has_the_limits_of_the_gateway(mounted: Front) -> None:
    """Too large is a 413 before it is read, compressed ones are inflated, and nothing stays counted."""
    told = await mounted.post("/their/shop/echo", b"12")
    assert (told.body, told.kind) == (b"12", "image/png")
    told = await mounted.post("/their/shop/echo", b"x" * 70_000)
    assert (told.status, told.json["code"]) == (413, "too_large")
    assert mounted.gateway.bodies.held == 0


@pytest.mark.parametrize("path", ["/their/shop/%2e%2e", "/their/shop/a%2fb", "/their/shop//", "/their/shop/%ff"])
async def test_segments_are_safe(mounted: Front, path: str) -> None:
    """As the values of path parameters are."""
    told = await mounted.get(path)
    assert (told.status, told.json["details"]) == (400, {"path": "path"})


async def test_failures_become_problems(mounted: Front, capsys: pytest.CaptureFixture[str]) -> None:
    """A MeshError with its code and details; anything else is a 500 that tells the client nothing."""
    told = await mounted.get("/their/shop/refuses")
    assert (told.status, told.json["code"], told.json["details"]) == (409, "closed", {"until": "8"})
    assert told.headers["X-Added"] == "yes"
    for what in ("breaks", "forgets", "injects?a=%0d%0aX-Evil:1"):
        told = await mounted.get(f"/their/shop/{what}")
        assert (told.status, told.json["code"], told.kind) == (500, "internal_error", "application/problem+json")
        assert b"secret" not in told.body
        assert "X-Evil" not in told.headers
    lines = capsys.readouterr()
    assert (lines.out + lines.err).count("mount=/their/shop") >= 3
    errors = counted(mounted)["/their/shop", "GET"]["errors"]
    assert errors == {"closed": 1, "internal_error": 3}


async def test_a_reply_may_be_kept_for_many_requests(mounted: Front) -> None:
    """The end of one connection is not that of the next."""
    told = await mounted.get("/their/shop/keeps", headers={"Connection": "close"})
    assert (told.body, told.headers["Connection"]) == (b"kept", "close")
    assert "Connection" not in (await mounted.get("/their/shop/keeps")).headers


async def test_a_handler_ends_with_the_deadline_of_the_request(mounted: Front, shop: Shop) -> None:
    """504, and it is cancelled."""
    told = await mounted.get("/their/shop/waits", headers={"X-Request-Timeout": "50ms"})
    assert (told.status, told.json["code"]) == (504, "deadline_exceeded")
    assert shop.events == ["waits", "cancelled"]


async def test_a_handler_is_cancelled_when_the_client_disconnects(mounted: Front, shop: Shop) -> None:
    """And the request is counted as cancelled."""
    _, writer = await mounted.raw(b"GET /their/shop/waits HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await eventually(lambda: shop.events, "it runs")
    writer.close()
    await eventually(lambda: shop.events == ["waits", "cancelled"], "it is cancelled")
    await eventually(lambda: counted(mounted)["/their/shop", "GET"]["errors"] == {"cancelled": 1}, "it is counted")


async def test_a_stream_is_sent_as_it_comes(mounted: Front, shop: Shop) -> None:
    """In chunks, with its header fields; HEAD opens none."""
    told = await mounted.get("/their/shop/streams?n=3")
    assert (told.body, told.kind, told.headers["X-A"]) == (b"0\n1\n2\n", "text/plain", "b")
    assert told.headers["Transfer-Encoding"] == "chunked"
    assert shop.events == ["closed"]
    told = await mounted.ask("HEAD", "/their/shop/streams?n=3")
    assert (told.status, told.body, told.headers["X-A"]) == (200, b"", "b")


async def test_a_stream_ends_when_the_client_disconnects(mounted: Front, shop: Shop) -> None:
    """Its generator is closed."""
    reader, writer = await mounted.raw(b"GET /their/shop/streams?n=1000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"5\n")
    writer.close()
    await eventually(lambda: shop.events == ["closed"], "it is closed")


async def test_a_stream_that_fails(mounted: Front) -> None:
    """Before its first chunk it is a problem, later the answer is visibly incomplete."""
    told = await mounted.get("/their/shop/early")
    assert (told.status, told.json["code"]) == (409, "closed")
    with pytest.raises(aiohttp.ClientPayloadError):
        await mounted.get("/their/shop/late")
    errors = counted(mounted)["/their/shop", "GET"]["errors"]
    assert errors == {"closed": 1, "internal_error": 1}
    with pytest.raises(aiohttp.ClientPayloadError):
        await mounted.get("/their/shop/streams?n=1000000", headers={"X-Request-Timeout": "200ms"})
    assert counted(mounted)["/their/shop", "GET"]["errors"]["deadline_exceeded"] == 1


async def test_requests_are_counted_by_mount(mounted: Front) -> None:
    """The labels are the prefix and the method; unusual ones are one label."""
    await mounted.get("/their/shop")
    await mounted.post("/their/shop/echo", b"1")
    for verb in ("PROPFIND", "LOCK"):
        assert (await mounted.ask(verb, "/their/shop")).status == 405
    found = counted(mounted)
    assert {key for key in found if key[0] == "/their/shop"} == {
        ("/their/shop", "GET"),
        ("/their/shop", "POST"),
        ("/their/shop", "other"),
    }


# --- the table ------------------------------------------------------------------------------------


def mount(prefix: str, **options: Any) -> Mount:
    async def handler(request: Request) -> Reply:
        return Reply.of(prefix)

    return Mount(prefix=prefix, handler=handler, **options)


@pytest.mark.parametrize("prefix", ["/rpc", "/rpc/x", "/docs/more", "/livez", "/", "/a/b", "/a", "/a/b/c"])
async def test_a_prefix_belongs_to_one_mount(prefix: str) -> None:
    """Neither the same nor above or below another; the error names both."""
    others = [External(mount("/a/b"), "first"), External(mount(prefix), "second")]
    with pytest.raises(BadMount) as caught:
        Gateway(FakeNode(), Settings(), others)
    assert caught.value.details["origin"] == "second"
    assert caught.value.details["prefix"] == prefix


@pytest.mark.parametrize("prefix", ["a", "", "/a/", "//a", "/{a}", "/a b", "/a?b", "/a/..", "/ä", None])
def test_a_malformed_prefix_is_refused(prefix: Any) -> None:
    """Where the mount is made."""
    with pytest.raises(BadMount):
        mount(prefix)


def test_a_malformed_mount_is_refused() -> None:
    """Each part."""
    for wrong in ({"methods": "GET"}, {"methods": ("get",)}, {"openapi": 7}):
        with pytest.raises(BadMount):
            mount("/a", **wrong)
    with pytest.raises(BadMount):
        Mount(prefix="/a", handler=None)  # type: ignore[arg-type]


async def test_declared_routes_below_a_mount_are_conflicts() -> None:
    """As those below the gateway's own addresses; an exact mount leaves the rest."""
    node = FakeNode()
    shop = [
        RouteRecord("GET", path, "m")
        for path in ("/their/x", "/their", "/their/{id}", "/theirs", "/one", "/one/{id}", "/{a}/{b}")
    ]

    async def m() -> str:
        return "m"

    node.serve("shop", shop, m=m)
    gateway = Gateway(node, Settings(), [External(mount("/their"), "t:m"), External(mount("/one", exact=True), "o:m")])
    found = {(each.path, each.winner, each.loser) for each in gateway.catalog.routes.conflicts}
    assert found == {
        ("/their/x", "mount t:m", "shop"),
        ("/their", "mount t:m", "shop"),
        ("/their/{id}", "mount t:m", "shop"),
        ("/one", "mount o:m", "shop"),
    }
    served = {each["path"] for each in gateway.status()["conflicts"]}
    assert served == {path for path, _, _ in found}


# --- OpenAPI --------------------------------------------------------------------------------------

PART: dict[str, Any] = {
    "paths": {
        "/their/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {
                "summary": "Shows it.",
                "responses": {
                    "200": {
                        "description": "It.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/It"}}},
                    },
                    "404": {"$ref": "#/components/responses/Problem404"},
                },
            },
        }
    },
    "components": {"schemas": {"It": {"type": "object"}}},
    "tags": [{"name": "their", "description": "Theirs."}],
}  # fmt: skip


async def test_the_part_of_a_mount_is_in_the_document() -> None:
    """With an id and a tag when it has none; given as a mapping or by a function."""
    for openapi in (PART, lambda document: document.add("/their", PART)):
        gateway = Gateway(FakeNode(), Settings(), [External(mount("/their", openapi=openapi), "t:m")])
        document = msgspec.json.decode(gateway.openapi())
        validate(document, cls=OpenAPIV31SpecValidator)
        operation = document["paths"]["/their/{id}"]["get"]
        assert (operation["tags"], operation["operationId"]) == (["their"], "their.get/{id}")
        assert {"name": "their", "description": "Theirs."} in document["tags"]


def changed(**parts: Any) -> dict[str, Any]:
    return {**PART, **parts}


@pytest.mark.parametrize(
    "part",
    [
        {"path": {}},
        {"paths": []},
        {"paths": {"/other": {"get": {"responses": {"200": {"description": "x"}}}}}},
        {"paths": {"/theirs": {"get": {"responses": {"200": {"description": "x"}}}}}},
        {"paths": {"/their": {"GET": {"responses": {"200": {"description": "x"}}}}}},
        {"paths": {"/their": {"get": {}}}},
        {"paths": {"/their": {"get": {"responses": {"200": {}}}}}},
        {"paths": {"/their": {"get": 7}}},
        {
            "paths": {
                "/their": {
                    "get": {"operationId": "a", "responses": {"200": {"description": "x"}}},
                    "post": {"operationId": "a", "responses": {"200": {"description": "x"}}},
                }
            }
        },
        changed(components={}),
        changed(components={"schemas": {"It": {}, "Problem": {"type": "string"}}}),
        changed(tags=[{"description": "x"}]),
        changed(tags={}),
        {"paths": {"/their": {"get": object()}}},
        lambda document: 1 / 0,
    ],
)
async def test_a_broken_part_is_refused_at_start(part: Any) -> None:
    """With the entry that it comes from."""
    with pytest.raises(BadMount, match="t:m"):
        Gateway(FakeNode(), Settings(), [External(mount("/their", openapi=part), "t:m")])


async def test_a_part_that_breaks_later_is_left_out() -> None:
    """The rest of the document is served."""
    ill = False

    def openapi(document: Any) -> None:
        if ill:
            raise RuntimeError("ill")
        document.add("/their", PART)

    node = FakeNode()
    open_shop(node)
    gateway = Gateway(node, Settings(), [External(mount("/their", openapi=openapi), "t:m")])
    assert "/their/{id}" in msgspec.json.decode(gateway.openapi())["paths"]
    ill = True
    paths = msgspec.json.decode(gateway.openapi())["paths"]
    assert "/their/{id}" not in paths
    assert "/hello/{name}" in paths


# --- from outside ---------------------------------------------------------------------------------

MODULE = """
from mesh.gateway.mounts import Mount, Reply

async def answer(request):
    return Reply.of("from outside")

mount = Mount(prefix="/outside", handler=answer)
several = [Mount(prefix="/one", handler=answer), Mount(prefix="/two", handler=answer)]
nothing = 7

def made(settings):
    return Mount(prefix="/" + settings.mesh.name, handler=answer)

def fails(settings):
    raise RuntimeError("no")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with mounts; what is imported from it is forgotten afterwards."""
    package = tmp_path / "outside_shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "health.py").write_text(MODULE)
    (package / "broken.py").write_text("import there_is_no_such_module")
    (package / "raises.py").write_text("1 / 0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside_shop"]:
        del sys.modules[name]


def configured(root: Path, *mounts: str) -> Settings:
    settings = Settings(root=root)
    return msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, mounts=list(mounts)))


@pytest.mark.parametrize(
    ("entry", "prefixes"),
    [
        ("outside_shop.health:mount", ["/outside"]),
        ("outside_shop.health:several", ["/one", "/two"]),
        ("outside_shop.health:made", ["/mesh-of-mine"]),
    ],
)
def test_mounts_of_the_project_are_imported(project: Path, entry: str, prefixes: list[str]) -> None:
    """A mount, several, or a function of the settings."""
    settings = configured(project, entry)
    named = msgspec.structs.replace(settings.mesh, name="mesh-of-mine")
    found = load(msgspec.structs.replace(settings, mesh=named))
    assert [(each.mount.prefix, each.origin) for each in found] == [(prefix, entry) for prefix in prefixes]


@pytest.mark.parametrize(
    "entry",
    [
        "outside_shop.health:mout",
        "outside_shop.health:nothing",
        "outside_shop.health:fails",
        "outside_shop.health:",
        ":mount",
        "outside_shop.none:mount",
        "no_such_package:mount",
        "outside_shop.broken:mount",
        "outside_shop.raises:mount",
        "no-such-entry-point",
        "",
    ],
)
def test_what_cannot_be_used_is_named(project: Path, entry: str) -> None:
    """With the key, the entry and the reason; nothing is skipped silently."""
    with pytest.raises(BadMount) as caught:
        load(configured(project, entry))
    assert caught.value.message.startswith(f'gateway.mounts: "{entry}"')


def test_an_entry_is_listed_once(project: Path) -> None:
    """A second one is a mistake."""
    with pytest.raises(BadMount):
        load(configured(project, "outside_shop.health:mount", "outside_shop.health:mount"))


def test_an_installed_package_brings_a_mount_by_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its entry point; installing it alone mounts nothing."""
    info = project / "outside_shop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-shop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mesh.mounts]\noutside-shop = outside_shop.health:mount\n")
    sys.path.insert(0, str(project))
    assert load(configured(project)) == []
    assert [each.mount.prefix for each in load(configured(project, "outside-shop"))] == ["/outside"]
    with pytest.raises(BadMount, match="outside-shop"):
        load(configured(project, "outside-shp"))
    assert metadata.version("outside-shop") == "1.0"


async def test_a_real_gateway_serves_it_with_its_lifespan(project: Path) -> None:
    """Started before it listens, stopped after the last answer; its calls go over the mesh, in the request's trace."""
    events: list[str] = []

    class Greeter(mesh.Service):
        @mesh.rpc
        async def hello(self, name: str) -> str:
            current = mesh.current()
            events.append(f"call {(current.trace or '')[3:35] if current else ''}")
            return f"Hello, {name}!"

    @asynccontextmanager
    async def lifespan(node: Any) -> AsyncIterator[None]:
        events.append("start")
        yield
        events.append("stop")

    shop = Shop()
    mount = Mount(prefix="/their/shop", handler=shop.handle, lifespan=lifespan)
    async with Mesh(Greeter) as m:
        gateway = Gateway(m.node, m.settings, [External(mount, "t:m")])
        async with gateway.mounts.lifespans():
            listener = app.bind("127.0.0.1", 0)
            server = gateway.make_server()
            accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
            async with (
                aiohttp.ClientSession(app.shown(listener)) as session,
                session.get("/their/shop/calls") as answer,
            ):
                assert await answer.json() == "Hello, you!"
                trace = answer.headers["traceparent"][3:35]
            accepting.close()
            await server.shutdown(0.2)
    assert events == ["start", f"call {trace}", "stop"]


async def test_a_mount_that_fails_to_start_stops_the_gateway() -> None:
    """Those before it are stopped."""
    events: list[str] = []

    @asynccontextmanager
    async def good(node: Any) -> AsyncIterator[None]:
        events.append("start")
        try:
            yield
        finally:
            events.append("stop")

    @asynccontextmanager
    async def bad(node: Any) -> AsyncIterator[None]:
        raise OSError("no disk")
        yield

    mounts = [External(mount("/a", lifespan=good), "a:m"), External(mount("/b", lifespan=bad), "b:m")]
    gateway = Gateway(FakeNode(), Settings(), mounts)
    with pytest.raises(SetupError, match="b:m"):
        async with gateway.mounts.lifespans():
            pytest.fail("it started")
    assert events == ["start", "stop"]

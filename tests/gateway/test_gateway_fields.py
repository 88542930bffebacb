"""Header fields and cookies as parameters: over a declared route, /rpc and /tasks, and from Python."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from enum import Enum
from typing import Annotated, Any

import aiohttp
import msgspec
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from yarl import URL

import mesh
from mesh import http
from mesh.calls.declared import BadDeclaration
from mesh.gateway import app
from mesh.gateway.fields import read_cookies, split_list
from mesh.gateway.server import Gateway
from mesh.service.describe import handlers, record
from mesh.testing import Mesh

SHOP = "https://shop.example"


class Level(Enum):
    LOW = "low"
    HIGH = "high"


class Desk(mesh.Service):
    """Reads everything that a request has."""

    name = "desk"
    expose = True
    ran: list[Any] = []

    @http.get("/plain")
    async def plain(self, tenant: Annotated[str, http.Header("X-Tenant")]) -> str:
        return tenant

    @http.get("/seen/{id}")
    async def seen(
        self,
        id: int,
        user_agent: Annotated[str, http.Header],
        session: Annotated[str, http.Cookie] = "",
        depth: Annotated[int, http.Header("X-Depth"), msgspec.Meta(le=9)] = 1,
        tags: Annotated[list[int], http.Header("X-Tag")] = [],  # noqa: B006  # never changed
        level: Annotated[Level | None, http.Header("X-Level")] = None,
        visits: Annotated[list[str] | None, http.Cookie("visit")] = None,
        q: str = "",
    ) -> dict[str, Any]:
        return {
            "id": id, "agent": user_agent, "session": session, "depth": depth, "tags": tags, "q": q,
            "level": level and level.value, "visits": visits,
        }  # fmt: skip

    @http.post("/orders")
    async def order(
        self, item: str, tenant: Annotated[str, http.Header("X-Tenant")], amount: int = 1
    ) -> dict[str, Any]:
        return {"item": item, "tenant": tenant, "amount": amount}

    @http.put("/files")
    async def store(self, data: bytes, tenant: Annotated[str, http.Header("X-Tenant")] = "none") -> str:
        return f"{tenant}: {len(data)}"

    @http.get("/count")
    async def count(self, n: Annotated[int, http.Header("X-Count")]) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @mesh.task
    async def bill(self, order: str, tenant: Annotated[str, http.Header("X-Tenant")], amount: int = 1) -> list[Any]:
        Desk.ran.append([order, tenant, amount])
        return [order, tenant, amount]

    @mesh.task
    async def scan(self, image: bytes, tenant: Annotated[str, http.Header("X-Tenant")] = "none") -> str:
        return f"{tenant}: {len(image)}"


@pytest.fixture
async def desk() -> AsyncIterator[tuple[Mesh, aiohttp.ClientSession, Gateway]]:
    Desk.ran = []
    async with Mesh(Desk) as m:
        limits = msgspec.structs.replace(m.settings.gateway, origins=[SHOP])
        gateway = Gateway(m.node, msgspec.structs.replace(m.settings, gateway=limits))
        listener = app.bind("127.0.0.1", 0)
        server = gateway.make_server()
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        async with aiohttp.ClientSession(app.shown(listener), cookie_jar=aiohttp.DummyCookieJar()) as session:
            yield m, session, gateway
        accepting.close()
        await server.shutdown(0.2)


async def ask(session: aiohttp.ClientSession, verb: str, path: str, *headers: tuple[str, str], **options: Any) -> Any:
    """Status and body of an answer; a header may be given several times."""
    given = CIMultiDict([("User-Agent", "test"), *headers])
    async with session.request(verb, URL(path, encoded=True), headers=given, **options) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_header_fields_and_cookies_are_converted_by_type(desk: Any) -> None:
    """By name without regard to case, cookies by their exact name; what is absent has its default."""
    _, session, _ = desk
    status, told = await ask(
        session, "GET", "/seen/7?q=x",
        ("x-depth", "3"), ("X-Tag", "1, 2"), ("X-Tag", "3"), ("X-Level", "high"),
        ("Cookie", 'other=1; session="s-1"; visit=a; visit=b; Session=no'),
    )  # fmt: skip
    assert (status, told) == (
        200,
        {"id": 7, "agent": "test", "session": "s-1", "depth": 3, "tags": [1, 2, 3], "q": "x", "level": "high",
         "visits": ["a", "b"]},
    )  # fmt: skip
    status, told = await ask(session, "GET", "/seen/7")
    assert (status, told["session"], told["depth"], told["tags"]) == (200, "", 1, [])
    assert await ask(session, "GET", "/plain", ("X-Tenant", "a")) == (200, "a")


@pytest.mark.parametrize(
    ("verb", "path", "headers", "place"),
    [
        ("GET", "/plain", [], "header.X-Tenant"),
        ("GET", "/plain", [("X-Tenant", "a"), ("X-Tenant", "b")], "header.X-Tenant"),
        ("GET", "/plain", [("X-Tenant", "\udcff")], "header.X-Tenant"),
        ("GET", "/seen/7", [("X-Depth", "deep")], "header.X-Depth"),
        ("GET", "/seen/7", [("X-Depth", "10")], "header.X-Depth"),  # found by the worker
        ("GET", "/seen/7", [("X-Tag", "1,x")], "header.X-Tag"),
        ("GET", "/seen/7", [("X-Level", "none")], "header.X-Level"),
        ("POST", "/orders", [], "header.X-Tenant"),
        ("POST", "/rpc/desk/order", [], "header.X-Tenant"),
        ("POST", "/tasks/desk/bill", [], "header.X-Tenant"),
        ("GET", "/count", [("X-Count", "x")], "header.X-Count"),
    ],
)
async def test_what_is_wrong_names_the_header(desk: Any, verb: str, path: str, headers: Any, place: str) -> None:
    """As a wrong value in the query names its place: 400, with the place in details.path."""
    _, session, _ = desk
    body = {"order": "o"} if "tasks" in path else {"item": "bread"}
    options = {"json": body} if verb == "POST" else {}
    if headers and "\udcff" in headers[0][1]:
        reader, writer = await asyncio.open_connection(session._base_url.host, session._base_url.port)
        writer.write(b"GET /plain HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Tenant: \xff\r\n\r\n")
        answer = await reader.read()
        writer.close()
        status, told = int(answer.split()[1]), msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])
    else:
        status, told = await ask(session, verb, path, *headers, **options)
    assert (status, told["code"], told["details"]["path"]) == (400, "bad_arguments", place)


@pytest.mark.parametrize("path", ["/orders", "/rpc/desk/order", "/tasks/desk/bill"])
@pytest.mark.parametrize("form", ["json", "msgpack"])
async def test_a_body_cannot_set_a_header_field(desk: Any, path: str, form: str) -> None:
    """A member of that name is refused, with the header field and without; the arguments by position leave it out."""
    _, session, _ = desk
    first = "order" if "tasks" in path else "item"
    encode = msgspec.json.encode if form == "json" else msgspec.msgpack.encode
    kind = ("Content-Type", f"application/{form}")

    async def post(value: Any, *headers: tuple[str, str]) -> Any:
        return await ask(session, "POST", path, kind, *headers, data=encode(value))

    for headers in ((), (("X-Tenant", "real"),)):
        status, told = await post({first: "x", "tenant": "forged"}, *headers)
        assert status == 400
        # A declared route names the missing field first.
        assert told["details"]["path"] in ("body.tenant", *(() if headers else ("header.X-Tenant",)))
    assert not Desk.ran
    status, told = await post({first: "x", "amount": 2}, ("X-Tenant", "real"))
    assert status == (202 if "tasks" in path else 200)
    if path != "/orders":
        status, told = await post(["x", 3], ("X-Tenant", "real"))
        assert status == (202 if "tasks" in path else 200)
        status, told = await post(["x", 3, "forged"], ("X-Tenant", "real"))
        assert (status, told["details"]["path"]) == (400, "body[2]")
    if "rpc" in path:
        status, told = await post(["x", 3], ("X-Tenant", "real"))
        assert told == {"item": "x", "tenant": "real", "amount": 3}
    if form == "msgpack" and "rpc" in path:
        status, told = await post({0: "x", "amount": 3}, ("X-Tenant", "real"))
        assert told == {"item": "x", "tenant": "real", "amount": 3}
        status, told = await post({0: "x", "item": "y"}, ("X-Tenant", "real"))
        assert (status, told["details"]["path"]) == (400, "body.item")


async def test_bodies_of_bytes_streams_and_tasks_have_them_too(desk: Any) -> None:
    """Each form of a request."""
    _, session, _ = desk
    tenant = ("X-Tenant", "t")
    kind = ("Content-Type", "image/png")
    for path in ("/files", "/rpc/desk/store"):
        verb = "PUT" if path == "/files" else "POST"
        assert await ask(session, verb, path, kind, tenant, data=b"123") == (200, "t: 3")
        assert await ask(session, verb, path, kind, data=b"123") == (200, "none: 3")
    async with session.get("/count", headers={"X-Count": "2", "Accept": "application/x-ndjson"}) as answer:
        assert await answer.read() == b"0\n1\n"
    for path, options, expected in (
        ("/tasks/desk/bill", {"json": {"order": "o-1"}}, ["o-1", "t", 1]),
        ("/tasks/desk/bill", {"json": ["o-2", 5]}, ["o-2", "t", 5]),
        ("/tasks/desk/scan", {"data": b"12"}, "t: 2"),
    ):
        status, told = await ask(session, "POST", path, tenant, *([kind] if "data" in options else []), **options)
        assert status == 202, told
        status, shown = await ask(session, "GET", f"{told['job']}?wait=10s")
        assert (shown["status"], shown["result"]) == ("done", expected)


async def test_a_caller_from_python_passes_them_as_arguments(desk: Any) -> None:
    """By name or position, or not at all when they have defaults; one without is missing as any other."""
    m, _, _ = desk
    assert await m.node.call("desk.order", "bread", tenant="t") == {"item": "bread", "tenant": "t", "amount": 1}
    assert await m.node.call("desk.store", b"1") == "none: 1"
    assert await m.node.rpc[Desk].plain("t") == "t"
    with pytest.raises(mesh.BadArguments) as caught:
        await m.node.call("desk.order", "bread")
    assert caught.value.details["path"] == "$.tenant"


async def test_the_openapi_document_has_them_as_parameters(desk: Any) -> None:
    """Valid, in their place, and not as members of the body."""
    _, _, gateway = desk
    document = msgspec.json.decode(gateway.openapi())
    validate(document, cls=OpenAPIV31SpecValidator)
    for path, verb in (("/orders", "post"), ("/rpc/desk/order", "post"), ("/tasks/desk/bill", "post")):
        operation = document["paths"][path][verb]
        found = {(each["in"], each["name"]): each["required"] for each in operation["parameters"] if "required" in each}
        assert found["header", "X-Tenant"] is True
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        named = schema if "properties" in schema else schema["anyOf"][0]
        assert "tenant" not in named["properties"]
        assert "tenant" not in named["required"]
    parameters = document["paths"]["/seen/{id}"]["get"]["parameters"]
    found = {(each["in"], each["name"]): each.get("required") for each in parameters}
    assert found["header", "User-Agent"] is True
    assert found["cookie", "session"] is False
    assert found["header", "X-Tag"] is False
    assert found["query", "q"] is False


async def test_pages_of_listed_origins_may_send_and_read_them(desk: Any) -> None:
    """The preflight allows the fields that it asks for; nothing that is no token gets into the answer."""
    _, session, _ = desk
    asks = {
        "Origin": SHOP,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "x-tenant, bad name, X-Depth",
    }
    async with session.options("/plain", headers=asks) as answer:
        allowed = [each.strip() for each in answer.headers["Access-Control-Allow-Headers"].split(",")]
    assert allowed[-2:] == ["x-tenant", "X-Depth"]
    async with session.get("/plain", headers={"Origin": SHOP, "X-Tenant": "t"}) as answer:
        assert answer.headers["Access-Control-Expose-Headers"] == "*"


@pytest.mark.parametrize(
    "make",
    [
        lambda: http.Header("X Tenant"),
        lambda: http.Header("X-Tenant:"),
        lambda: http.Cookie("a=b"),
        lambda: http.Cookie(7),  # type: ignore[arg-type]
    ],
)
def test_a_name_that_cannot_be_one_is_refused(make: Any) -> None:
    """Where it is written."""
    with pytest.raises(BadDeclaration):
        make()


async def twice(self: Any, a: Annotated[str, http.Header("X-A")], b: Annotated[str, http.Header("x-a")]) -> None: ...
async def doubly(self: Any, a: Annotated[str, http.Header("X-A"), http.Query]) -> None: ...
async def both(self: Any, a: Annotated[str, http.Header, http.Cookie]) -> None: ...


@pytest.mark.parametrize("function", [twice, doubly, both])
def test_contradicting_markers_are_refused(function: Any) -> None:
    """When the worker starts, with the name of the method."""
    cls = type("Bad", (mesh.Service,), {"method": mesh.rpc(function)})
    with pytest.raises(BadDeclaration, match=r"bad\.method"):
        record(cls, id="1", epoch=1)


def test_a_header_in_the_path_is_refused() -> None:
    """A parameter has one place."""

    class Bad(mesh.Service):
        @http.get("/x/{a}")
        async def method(self, a: Annotated[str, http.Header("X-A")]) -> None: ...

    with pytest.raises(BadDeclaration, match=r"bad\.method"):
        record(Bad, id="1", epoch=1)


def test_an_event_has_no_request() -> None:
    """A marked parameter of a handler of events could never be filled."""

    class Bad(mesh.Service):
        @mesh.on("order.*")
        async def heard(self, order: dict[str, Any], tenant: Annotated[str, http.Header] = "") -> None: ...

    with pytest.raises(BadDeclaration, match=r"bad\.heard"):
        handlers(Bad())


def test_cookies_are_read_as_browsers_send_them() -> None:
    """Malformed pairs are skipped, quotes removed, several lines joined."""
    lines = [("Cookie", 'a=1; b="x y"; c; =d; e=f=g; a=2'), ("Cookie", "h=")]
    found = read_cookies(CIMultiDictProxy(CIMultiDict(lines)))
    assert found == {"a": ["1", "2"], "b": ["x y"], "e": ["f=g"], "h": [""]}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a, b,c", ["a", "b", "c"]),
        (" , a,, ", ["a"]),
        ('"a, b", c', ['"a, b"', "c"]),
        ('"a\\", b", c', ['"a\\", b"', "c"]),
        ("", []),
    ],
)
def test_a_list_is_separated_by_commas_outside_of_quotes(text: str, parts: list[str]) -> None:
    """RFC 9110, section 5.6.1."""
    assert split_list(text) == parts

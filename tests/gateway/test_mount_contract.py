"""What every mount does: each of mesh, and one of another package in each form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front, eventually
from gateway_shop import open_shop
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from mesh.config import Settings
from mesh.gateway import app
from mesh.gateway.mounts import Mount, Reply, Request, Stream
from mesh.gateway.mounts.external import External
from mesh.gateway.mounts.registry import BUILT_IN
from mesh.gateway.server import Gateway

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def page(request: Request) -> Reply:
    return Reply.json({"path": request.path})


async def numbers() -> AsyncIterator[bytes]:
    for i in range(3):
        yield b"%d\n" % i


async def stream(request: Request) -> Stream:
    return Stream(numbers(), "text/plain", headers={"X-Stream": "yes"})


FOREIGN = [
    Mount(prefix="/their/page", handler=page, exact=True),
    Mount(prefix="/their/tree", handler=page, methods=("GET", "POST")),
    Mount(prefix="/their/stream", handler=stream),
]


@dataclass
class Case:
    """One address of a mount.

    Attributes:
        path: answers GET with `status`, unless `verb` says otherwise.
        beyond: an address of the mount where nothing is; "" when it has none.
    """

    prefix: str
    path: str
    allow: str
    status: int = 200
    verb: str = "GET"
    beyond: str = ""


CASES = [
    Case("/", "/hello/x", "GET, HEAD, OPTIONS", beyond="/nothing"),
    Case("/rpc", "/rpc/shop/hello", "POST, OPTIONS", verb="POST", status=400, beyond="/rpc/shop"),
    Case("/tasks", "/tasks/shop/none", "", verb="POST", status=404, beyond="/tasks/shop"),
    Case("/jobs", "/jobs/a/b", "GET, HEAD, DELETE, OPTIONS", status=404, beyond="/jobs/a/b"),
    Case("/livez", "/livez", "GET, HEAD, OPTIONS", beyond="/livez/x"),
    Case("/readyz", "/readyz", "GET, HEAD, OPTIONS", beyond="/readyz/x"),
    Case("/metrics", "/metrics", "GET, HEAD, OPTIONS", beyond="/metrics/x"),
    Case("/mesh", "/mesh", "GET, HEAD, OPTIONS", beyond="/mesh/x"),
    Case("/openapi.json", "/openapi.json", "GET, HEAD, OPTIONS", beyond="/openapi.json/x"),
    Case("/docs", "/docs", "GET, HEAD, OPTIONS", beyond="/docs/x"),
    Case("/their/page", "/their/page", "GET, HEAD, OPTIONS", beyond="/their/page/x"),
    Case("/their/tree", "/their/tree/x/y", "GET, HEAD, POST, OPTIONS"),
    Case("/their/stream", "/their/stream", "GET, HEAD, OPTIONS"),
]


@pytest.fixture
async def front(settings: Settings) -> AsyncIterator[Front]:
    """A gateway with all these mounts."""
    node = FakeNode()
    node.snapshots[open_shop(node).id] = {}
    async with AsyncExitStack() as stack:
        gateway = Gateway(node, settings, [External(mount, mount.prefix) for mount in FOREIGN])
        server = gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        front = Front(node, gateway, server, accepting, listener.getsockname(), session)
        yield front
        for writer in front.opened:
            writer.close()
        await session.close()
        accepting.close()
        await server.shutdown(0.2)


each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.prefix)


def test_the_cases_are_all_mounts_of_mesh() -> None:
    """A new mount needs a case here."""
    node = FakeNode()
    prefixes = [mounted.prefix for mounted in Gateway(node, Settings(), []).mounts]
    assert sorted(prefixes) == sorted(case.prefix for case in CASES if not case.prefix.startswith("/their"))
    assert len(prefixes) == len(BUILT_IN)


@each
async def test_every_answer_has_the_header_lines_of_the_gateway(front: Front, case: Case) -> None:
    """Trace, request id, date and server, in success and failure."""
    headers = {"traceparent": TRACE, "X-Request-Id": "r-1", "Content-Type": "application/json"}
    for path, expected in ((case.path, case.status), (case.beyond, 404)):
        if path:
            told = await front.ask(case.verb, path, headers=headers)
            assert told.status == expected
            assert told.headers["traceparent"] == TRACE
            assert told.headers["X-Request-Id"] == "r-1"
            assert told.headers.getall("Server") == ["mesh"]
            assert len(told.headers.getall("Date")) == 1


@each
async def test_what_is_not_there_is_a_problem(front: Front, case: Case) -> None:
    """With the trace id, as all failures."""
    if case.beyond:
        told = await front.ask(case.verb, case.beyond)
        assert (told.status, told.kind, told.json["code"]) == (404, "application/problem+json", "unknown_route")


@each
async def test_options_and_wrong_methods_name_the_allowed_ones(front: Front, case: Case) -> None:
    """The same list in both."""
    if not case.allow:
        return
    told = await front.ask("OPTIONS", case.path)
    assert (told.status, told.body) == (204, b"")
    assert told.headers["Allow"] == case.allow
    told = await front.ask("PATCH", case.path)
    assert (told.status, told.json["code"], told.headers["Allow"]) == (405, "method_not_allowed", case.allow)


@each
async def test_head_is_get_without_the_body(front: Front, case: Case) -> None:
    """The same status and type; the length too, when there is one."""
    if case.verb != "GET":
        return
    get, head = await front.get(case.path), await front.ask("HEAD", case.path)
    assert (head.status, head.body, head.kind) == (get.status, b"", get.kind)
    assert "X-Stream" not in get.headers or head.headers["X-Stream"] == get.headers["X-Stream"]


@each
async def test_the_connection_goes_on(front: Front, case: Case) -> None:
    """Whatever was answered, the next request of the connection is."""
    request = f"{case.verb} {case.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
    reader, _ = await front.raw(request + b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    data = await asyncio.wait_for(reader.read(), 10)
    assert data.count(b"HTTP/1.1 ") == 2
    assert data.endswith(b"\r\n\r\nlive\n")


@each
async def test_a_request_from_another_site_or_for_another_host_reaches_no_mount(front: Front, case: Case) -> None:
    """The checks come first."""
    told = await front.ask(case.verb, case.path, headers={"Host": "evil.example"})
    probed = case.path in ("/livez", "/readyz")
    assert told.status == (200 if probed else 421)
    told = await front.ask("POST", case.path, headers={"Origin": "https://evil.example"})
    assert (told.status, told.json["code"]) == (403, "cross_site")


@each
async def test_a_draining_gateway_closes_the_connection_with_the_answer(front: Front, case: Case) -> None:
    """So that the client's next request goes to another gateway."""
    front.gateway.health.draining = True
    told = await front.ask(case.verb, case.path)
    assert told.headers["Connection"] == "close"


async def test_the_document_is_valid_with_all_parts(front: Front) -> None:
    """Those of mesh; the foreign ones here have none."""
    validate(msgspec.json.decode(front.gateway.openapi()), cls=OpenAPIV31SpecValidator)


async def test_status_shows_the_table(front: Front) -> None:
    """In its order, with where each comes from."""
    told: Any = (await front.get("/mesh")).json["mounts"]
    assert told[0] == {"prefix": "/", "from": "mesh"}
    assert told[-1] == {"prefix": "/their/stream", "from": "/their/stream"}
    await eventually(lambda: not front.gateway.connections.busy, "all requests have ended")

"""HTTP interceptors, and the context from an HTTP request to the last task that it causes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.telemetry.traces import root
from mesh.testing import Mesh
from tests.gateway.gateway_interceptors import LOG
from tests.service.interceptor_services import Tell

INTERCEPTORS = "tests.gateway.gateway_interceptors"


@asynccontextmanager
async def serving(*interceptors: str) -> AsyncIterator[tuple[aiohttp.ClientSession, Mesh]]:
    LOG.clear()
    settings = {
        "interceptors": {"http": [f"{INTERCEPTORS}:{each}" for each in interceptors]},
        "gateway": {"rpc": "all"},
    }
    async with Mesh(Tell, settings=settings) as m:
        server = Gateway(m.node, m.settings).make_server()  # type: ignore[arg-type]
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        try:
            async with aiohttp.ClientSession(app.shown(listener)) as session:
                yield session, m
        finally:
            accepting.close()
            await server.shutdown(0.2)


async def test_http_interceptors_wrap_every_mount_in_the_order_of_mesh_toml():
    async with serving("Keys", "Inner") as (http, _):
        for path, status in (("/livez", 200), ("/openapi.json", 200), ("/nowhere", 404), ("/rpc/tell/none", 405)):
            LOG.clear()
            async with http.get(path) as answer:
                assert answer.status == status
                assert answer.headers["X-Seen"] == "keys"
                assert "traceparent" in answer.headers
            assert LOG[:2] == [f"keys GET {path}", "inner"]


async def test_they_answer_refuse_and_fail():
    async with serving("Keys", "Inner") as (http, _):
        for key, status, code in (("teapot", 418, None), (None, 403, "forbidden"), ("none", 500, "setup_error")):
            async with http.get("/tell", headers={"X-Key": key} if key else {}) as answer:
                assert answer.status == status
                assert (await answer.json()).get("code") == code
        async with http.get("/tell", headers={"X-Key": "broken"}) as answer:
            assert answer.status == 500
            assert "broken" not in await answer.text()
        assert "inner" not in LOG


async def test_what_they_set_reaches_services_and_tasks_and_not_the_next_request_of_the_connection():
    async with serving("Keys") as (http, _):
        async with http.get("/tell", headers={"X-Key": "ann"}) as answer:
            seen = await answer.json()
        assert (seen["principal"], seen["tenant"]) == ("ann", "ANN")
        assert (seen["task"]["principal"], seen["task"]["tenant"]) == ("ann", "ANN")
        async with http.post("/rpc/tell/next", json={}) as answer:
            assert (await answer.json())["principal"] == ""


@pytest.mark.parametrize("interceptors", [[], ["Keys"]])
async def test_w3c_headers_travel_from_http_to_a_task(interceptors: list[str]):
    """Unchanged; several lines of a header are one list."""
    trace = root()
    headers = [
        ("traceparent", trace),
        ("tracestate", "congo=t61rcWkgMzE"),
        ("tracestate", "rojo=00f067aa0ba902b7"),
        ("baggage", "userId=alice"),
        ("baggage", "plan=free%20of%20charge;p=1"),
        ("X-Key", "ann"),
    ]
    async with serving(*interceptors) as (http, _):
        async with http.get("/tell", headers=headers) as answer:  # type: ignore[arg-type]
            seen = await answer.json()
        assert seen["trace"] == seen["task"]["trace"] == trace[3:35]
        assert seen["tracestate"] == "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
        assert seen["baggage"] == seen["task"]["baggage"] == {"userId": "alice", "plan": "free of charge"}
        async with http.get("/tell", headers={"X-Key": "bob"}) as answer:
            assert (await answer.json())["baggage"] == {}


async def test_a_tracestate_without_a_traceparent_is_dropped():
    async with serving() as (http, _):
        async with http.get("/tell", headers={"tracestate": "a=b", "baggage": "x=1"}) as answer:
            seen = await answer.json()
        assert seen["tracestate"] == ""
        assert seen["baggage"] == {"x": "1"}


async def test_a_client_cannot_name_its_principal_or_tenant():
    """The names of the values in messages are no HTTP headers."""
    async with serving() as (http, _):
        headers = {"mesh.principal": "root", "mesh.tenant": "all", "baggage": "mesh.principal=root"}
        async with http.get("/tell", headers=headers) as answer:
            seen = await answer.json()
        assert (seen["principal"], seen["tenant"]) == ("", "")

"""The gateway's own pages: health, metrics, the list of what runs, OpenAPI, documentation."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gateway_fakes import FakeNode, record_of
from gateway_front import Front
from gateway_shop import Item, open_shop
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from mesh.config import Settings
from mesh.discovery.record import Instance, RouteRecord
from mesh.gateway.mounts.metrics import metrics_reply
from mesh.gateway.server import Gateway
from mesh.telemetry import heartbeats
from mesh.telemetry.heartbeats import Heartbeat
from mesh.telemetry.metrics import Recorder


@pytest.fixture
def shop(front: Front) -> Front:
    open_shop(front.node)
    return front


def described(node: FakeNode) -> dict[str, Any]:
    """The document, as it travels, validated."""
    told: dict[str, Any] = msgspec.json.decode(Gateway(node, Settings()).openapi())
    validate(told, cls=OpenAPIV31SpecValidator)
    return told


# --- health ---------------------------------------------------------------------------------------


async def test_a_gateway_is_ready_once_a_hub_has_told_and_stays_so(front: Front) -> None:
    """Alive from the start; ready with the first word of a hub; a hub that dies later takes nothing away."""
    front.node.agent.synced = False
    assert (await front.get("/livez")).status == 200
    told = await front.get("/readyz")
    assert (told.status, told.headers["Retry-After"]) == (503, "1")
    assert b"[-] hub: " in told.body
    front.node.agent.synced = True
    assert (await front.get("/readyz")).body == b"ready\n"
    assert b"[+] hub: synced" in (await front.get("/readyz?verbose")).body
    front.node.agent.hearing = False
    told = await front.get("/readyz?verbose")
    assert told.status == 200
    assert told.body.splitlines()[1].startswith(b"[+] hub: ")
    assert b"[+] hub: synced" not in told.body


async def test_a_gateway_that_leaves_is_alive_but_not_ready(front: Front) -> None:
    """And every answer closes its connection."""
    front.gateway.health.draining = True
    told = await front.get("/readyz?verbose=1")
    assert (told.status, told.headers["Connection"]) == (503, "close")
    assert b"[-] drain: " in told.body
    assert (await front.get("/livez")).status == 200


# --- metrics and status ---------------------------------------------------------------------------


async def test_metrics_are_those_of_every_process_of_the_host(shop: Front) -> None:
    """Scraped at once; a worker that does not answer is left out and counted; other hosts are theirs to tell."""
    shop.node.join(
        Instance("shop", "shop-2", 2, worker="stuck", host="testhost", endpoint="mem://2"),
        Instance("shop", "shop-3", 3, worker="far", host="otherhost", endpoint="mem://3"),
    )
    worker = Recorder()
    worker.method("server", "shop", "hello").begin()
    worker.method("server", "shop", "hello").end(0.002)
    shop.node.snapshots = {"shop-1": worker.snapshot(), "shop-2": None}
    await shop.get("/hello/x")
    told = await shop.get("/metrics")
    assert told.kind.startswith("text/plain")
    text = told.body.decode()
    assert re.search(r'mesh_requests_total\{[^}]*process="gateway-1"[^}]*side="http"[^}]*\} 1', text)
    assert re.search(r'mesh_requests_total\{[^}]*process="worker-shop-1"[^}]*side="server"[^}]*\} 1', text)
    assert re.search(r'mesh_worker_up\{[^}]*process="stuck"[^}]*\} 0', text)
    assert "otherhost" not in text
    assert "far" not in text
    assert re.search(r'mesh_metrics_unanswered_total\{[^}]*reason="deadline_exceeded"[^}]*\} 1', text)


async def test_a_restart_adds_no_series(shop: Front, tmp_path: Path) -> None:
    """A worker that has ended is not shown; one that hangs has the name that supervisor gives it."""
    ended, hangs = await asyncio.create_subprocess_exec("true"), os.getpid()
    await ended.wait()
    shop.node.join(
        Instance("shop", "shop-2", 2, worker="ended", host="testhost", endpoint="mem://2", pid=ended.pid),
        Instance("shop", "shop-3", 3, worker="hangs", host="testhost", endpoint="mem://3", pid=hangs),
    )
    shop.node.snapshots = {"shop-1": Recorder().snapshot(), "shop-2": None, "shop-3": None}
    began = heartbeats.started(hangs) or 0
    beat = Heartbeat(process="shop:shop_1", pid=hangs, started=began, at=0.0, stage="ready", liveness_s=30.0)
    (tmp_path / heartbeats.DIRECTORY).mkdir()
    (tmp_path / heartbeats.DIRECTORY / f"{hangs}.json").write_bytes(msgspec.json.encode(beat))
    body = (await metrics_reply(shop.node, "testhost", tmp_path)).body
    up = dict(re.findall(r'mesh_worker_up\{[^}]*process="([^"]*)"[^}]*\} ([01])', bytes(body).decode()))
    assert up == {"gateway-1": "1", "worker-shop-1": "1", "shop:shop_1": "0"}


async def test_mesh_shows_what_runs(shop: Front) -> None:
    """Services with methods, routes and instances; the gateway; the hubs; conflicts."""
    shop.node.serve("ashop", [RouteRecord("GET", "/page", "page")], page=shop.node.runs["shop.page"])
    told = (await shop.get("/mesh")).json
    by_name = {each["name"]: each for each in told["services"]}
    assert by_name["shop"]["instances"][0]["worker"] == "worker-shop-1"
    assert {"verb": "GET", "path": "/hello/{name}", "method": "hello"} in by_name["shop"]["routes"]
    assert told["conflicts"] == [{"verb": "GET", "path": "/page", "served_by": "ashop", "ignored": "shop"}]
    assert told["gateway"]["ready"] is True
    ready = await shop.get("/readyz?verbose")
    assert ready.status == 200
    (route,) = [line for line in ready.body.splitlines() if line.startswith(b"[!] route: GET /page: ")]
    assert b" shop," in route
    assert b" ashop;" in route
    assert b"route" not in (await shop.get("/readyz")).body
    assert told["hubs"] == [{"endpoint": "ipc:///run/hub.sock", "state": "learned"}]


# --- OpenAPI --------------------------------------------------------------------------------------


async def test_the_document_is_valid_and_has_every_operation(shop: Front) -> None:
    """OpenAPI 3.1 as a validator understands it, from the real signatures."""
    told = await shop.get("/openapi.json")
    spec = told.json
    validate(spec, cls=OpenAPIV31SpecValidator)
    assert spec["openapi"].startswith("3.1")
    item = spec["paths"]["/items"]["post"]
    assert item["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Item"}
    assert item["responses"]["201"]["content"]["application/json"]["schema"]["$ref"].endswith("/Item")
    assert spec["components"]["schemas"]["Item"]["properties"]["to"]["anyOf"][0]["$ref"].endswith("/Address")
    hello = spec["paths"]["/hello/{name}"]["get"]
    assert (hello["summary"], hello["description"]) == ("Greet somebody.", "By name.")
    assert set(spec["paths"]["/items/{id}"]) == {"patch", "delete"}
    assert "text/event-stream" in spec["paths"]["/count/{n}"]["get"]["responses"]["200"]["content"]
    assert "image/png" in spec["paths"]["/shrink"]["post"]["responses"]["200"]["content"]
    assert "/rpc/shop/hello" in spec["paths"]
    assert "$defs" not in told.body.decode()


async def test_the_document_follows_the_registry(front: Front) -> None:
    """A service that comes is in the next document."""
    assert (await front.get("/openapi.json")).json["paths"] == {}
    open_shop(front.node)
    assert "/hello/{name}" in (await front.get("/openapi.json")).json["paths"]


async def test_definitions_of_one_name_but_two_meanings_are_kept_apart() -> None:
    """Two services may both call something Item; equal ones are shared."""
    first, second = (msgspec.defstruct("Item", [("name", str)]), msgspec.defstruct("Item", [("size", int)]))

    async def take(item: Any) -> None: ...

    node = FakeNode()
    for name, kind in (("a", first), ("b", second), ("c", first)):
        take.__annotations__ = {"item": kind, "return": type(None)}
        record = record_of("take", take)
        node.join(Instance(name, name, 1, endpoint="mem://x", methods={"take": record}))
    spec = described(node)
    assert set(spec["components"]["schemas"]) == {"Problem", "Item", "b.Item"}
    other = spec["paths"]["/rpc/b/take"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert other["anyOf"][0]["properties"]["item"]["$ref"] == "#/components/schemas/b.Item"


async def test_paths_that_differ_in_names_only_are_one_path() -> None:
    """OpenAPI forbids `/x/{a}` beside `/x/{b}`."""
    node = FakeNode()

    async def get(a: int) -> int: ...
    async def put(b: int, item: Item) -> int: ...

    node.serve(
        "s",
        [
            RouteRecord("GET", "/x/{a}", "get", {"a": "path"}),
            RouteRecord("PUT", "/x/{b}", "put", {"b": "path", "item": "body"}),
        ],
        get=get,
        put=put,
    )
    paths = described(node)["paths"]
    assert set(paths["/x/{a}"]) == {"get", "put"}
    assert paths["/x/{a}"]["put"]["parameters"][0]["name"] == "a"


async def test_a_mesh_without_services_has_a_valid_document_too() -> None:
    """The first thing that a new user may look at."""
    assert described(FakeNode())["paths"] == {}


# --- documentation --------------------------------------------------------------------------------


async def test_the_documentation_needs_nothing_from_outside(front: Front) -> None:
    """Its files come from here, and the browser is told to load nothing else."""
    told = await front.get("/docs")
    assert (told.status, told.kind) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in told.headers["Content-Security-Policy"]
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', told.body.decode()):
        part = await front.get(path)
        assert part.status == 200, path
        assert b"//cdn" not in part.body
        if not path.endswith("bundle.js"):  # whose page is looked at in a browser, which enforces the policy
            assert not re.search(rb"""(?:src|href)=["']https?:|@import|url\((?!["']?data:)""", part.body)
    assert b"<script>" not in told.body


async def test_the_root_leads_to_the_documentation(front: Front) -> None:
    """Unless a service has it."""
    told = await front.get("/")
    assert (told.status, told.headers["Location"]) == (302, "/docs")


async def test_the_document_tells_which_operations_are_one_method(shop: Front) -> None:
    """So that the page can show a method that has a route of its own only once."""
    paths = (await shop.get("/openapi.json")).json["paths"]
    assert paths["/hello/{name}"]["get"]["x-mesh-target"] == "shop.hello"
    assert paths["/rpc/shop/hello"]["post"]["x-mesh-target"] == "shop.hello"

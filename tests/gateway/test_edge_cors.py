"""CORS: what pages of other origins may send and read, per gateway and per route."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front, Told
from gateway_shop import hello, open_shop, search

from mesh.config import Settings
from mesh.config.edge_protect import CorsSettings
from mesh.discovery.record import EdgePolicy, RouteRecord
from mesh.errors import ConfigError
from mesh.gateway.server import Gateway

APP = "https://app.example"
OTHER = "https://other.example"


def with_gateway(settings: Settings, **changes: Any) -> Settings:
    return msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, **changes))


async def ask(front: Front, verb: str, path: str, origin: str = APP, **headers: str) -> Told:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await front.ask(verb, path, headers={"Origin": origin, **sent}, skip_auto_headers=["Content-Type"])


async def preflight(front: Front, path: str, method: str, origin: str = APP, **headers: str) -> Told:
    return await ask(front, "OPTIONS", path, origin, Access_Control_Request_Method=method, **headers)


def listed(told: Told, name: str) -> set[str]:
    return {each.strip() for value in told.headers.getall(name, ()) for each in value.split(",")}


class TestOneGateway:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return with_gateway(settings, origins=[APP, "http://localhost:3000"])

    @pytest.fixture
    def shop(self, front: Front) -> Front:
        open_shop(front.node)
        return front

    @pytest.mark.parametrize(
        ("path", "methods"),
        [
            ("/hello/x", {"GET", "HEAD", "OPTIONS"}),
            ("/items", {"POST", "OPTIONS"}),
            ("/items/7", {"PATCH", "DELETE", "OPTIONS"}),
            ("/rpc/shop/hello", {"POST", "OPTIONS"}),
            ("/mesh", {"GET", "HEAD", "OPTIONS"}),
            ("/jobs/abc", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ],
    )
    async def test_a_preflight_names_the_methods_that_the_path_has(
        self, shop: Front, path: str, methods: set[str]
    ) -> None:
        told = await preflight(shop, path, "DELETE", Access_Control_Request_Headers="x-shop, authorization")
        assert (told.status, told.body) == (204, b"")
        assert listed(told, "Access-Control-Allow-Methods") == methods
        assert listed(told, "Access-Control-Allow-Headers") >= {"x-shop", "authorization", "Content-Type"}
        assert told.headers["Access-Control-Allow-Origin"] == APP
        assert told.headers["Access-Control-Max-Age"] == "600"
        assert listed(told, "Vary") == {
            "Origin",
            "Access-Control-Request-Method",
            "Access-Control-Request-Headers",
            "Access-Control-Request-Private-Network",
        }
        assert "Access-Control-Expose-Headers" not in told.headers
        assert shop.node.calls == []

    async def test_a_preflight_of_another_origin_gets_nothing(self, shop: Front) -> None:
        for origin in (OTHER, "null", "https://app.example.evil", "http://app.example", "https://app.example:444"):
            told = await preflight(shop, "/hello/x", "GET", origin)
            assert told.status == 204
            assert not [name for name in told.headers if name.startswith("Access-Control")]
            assert "Origin" in listed(told, "Vary")

    async def test_names_of_fields_in_a_preflight_are_checked(self, shop: Front) -> None:
        names = "x-good, x bad, x-a;b, " + ", ".join(f"x-{n}" for n in range(1000))
        told = await preflight(shop, "/hello/x", "GET", Access_Control_Request_Headers=names)
        found = listed(told, "Access-Control-Allow-Headers")
        assert "x-good" in found
        assert not found & {"x bad", "x-a;b", "x-999"}

    async def test_a_private_network_is_refused(self, shop: Front) -> None:
        told = await preflight(shop, "/hello/x", "GET", Access_Control_Request_Private_Network="true")
        assert "Access-Control-Allow-Origin" not in told.headers

    async def test_every_answer_may_be_read_errors_too(self, shop: Front) -> None:
        for path, status in (("/hello/x", 200), ("/nowhere", 404), ("/search?limit=x", 400), ("/count/3", 200)):
            told = await ask(shop, "GET", path)
            assert (told.status, told.headers["Access-Control-Allow-Origin"]) == (status, APP)
            assert told.headers["Access-Control-Expose-Headers"] == "*"
            assert listed(told, "Vary") == {"Origin"}
            assert "Access-Control-Allow-Credentials" not in told.headers
            other = await ask(shop, "GET", path, OTHER)
            assert "Access-Control-Allow-Origin" not in other.headers
            assert listed(other, "Vary") == {"Origin"}

    async def test_an_answer_without_an_origin_varies_too(self, shop: Front) -> None:
        told = await shop.get("/hello/x")
        assert listed(told, "Vary") == {"Origin"}
        assert "Access-Control-Allow-Origin" not in told.headers

    async def test_a_preflight_for_nothing_is_404(self, shop: Front) -> None:
        assert (await preflight(shop, "/nowhere", "GET")).status == 404


class TestCredentials:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        cors = CorsSettings(
            credentials=True, headers=["X-Shop"], expose=["*", "X-Total"], max_age_s=5.0, private_network=True
        )
        return with_gateway(settings, origins=[APP], cors=cors)

    async def test_cookies_may_be_sent_and_named_fields_read(self, front: Front) -> None:
        open_shop(front.node)
        told = await ask(front, "GET", "/hello/x")
        assert told.headers["Access-Control-Allow-Credentials"] == "true"
        assert listed(told, "Access-Control-Expose-Headers") >= {"X-Total", "Location", "ETag"}
        assert "*" not in listed(told, "Access-Control-Expose-Headers")
        asked = await preflight(
            front,
            "/hello/x",
            "GET",
            Access_Control_Request_Headers="X-Evil",
            Access_Control_Request_Private_Network="true",
        )
        assert asked.headers["Access-Control-Allow-Credentials"] == "true"
        assert asked.headers["Access-Control-Allow-Private-Network"] == "true"
        assert asked.headers["Access-Control-Max-Age"] == "5"
        assert "X-Shop" in listed(asked, "Access-Control-Allow-Headers")
        assert "X-Evil" not in listed(asked, "Access-Control-Allow-Headers")

    @pytest.mark.parametrize("origin", ["*", "null"])
    async def test_a_route_for_everyone_gets_no_credentials(self, front: Front, origin: str) -> None:
        record = RouteRecord("GET", "/open", "search", edge=EdgePolicy(cors=[origin]))
        front.node.serve("open", [record], search=search)
        told = await ask(front, "GET", "/open", origin if origin != "*" else OTHER)
        assert told.headers["Access-Control-Allow-Origin"] == origin
        assert "Access-Control-Allow-Credentials" not in told.headers


@pytest.mark.parametrize(
    "changes",
    [
        {"origins": ["*"], "cors": CorsSettings(credentials=True)},
        {"origins": ["null"], "cors": CorsSettings(credentials=True)},
        {"cors": CorsSettings(headers=["a b"])},
        {"cors": CorsSettings(expose=["a:b"])},
        {"origins": ["app.example"]},
    ],
)
async def test_contradictions_are_found_at_the_start(node: FakeNode, settings: Settings, changes: Any) -> None:
    with pytest.raises(ConfigError):
        Gateway(node, with_gateway(settings, **changes))


class TestOneRoute:
    """Routes with a list of their own; the gateway has none."""

    @pytest.fixture
    def shop(self, front: Front) -> Front:
        records = [
            RouteRecord("GET", "/hello/{name}", "hello", {"name": "path"}, edge=EdgePolicy(cors=[APP])),
            RouteRecord("POST", "/hello/{name}", "hello", {"name": "path"}, edge=EdgePolicy(cors=[APP, "broken"])),
            RouteRecord("GET", "/open", "search", edge=EdgePolicy(cors=["*"])),
            RouteRecord("POST", "/closed", "search"),
        ]
        front.node.serve("shop", records, hello=hello, search=search)
        return front

    async def test_only_that_route_is_shared(self, shop: Front) -> None:
        assert (await ask(shop, "GET", "/hello/x")).headers["Access-Control-Allow-Origin"] == APP
        assert "Access-Control-Allow-Origin" not in (await ask(shop, "GET", "/hello/x", OTHER)).headers
        assert (await ask(shop, "GET", "/open", OTHER)).headers["Access-Control-Allow-Origin"] == "*"
        assert "Vary" not in (await ask(shop, "GET", "/open", OTHER)).headers
        closed = await preflight(shop, "/closed", "POST")
        assert not {"Access-Control-Allow-Origin", "Vary"} & set(closed.headers)

    async def test_a_page_of_a_listed_origin_may_change_things_there_and_only_there(self, shop: Front) -> None:
        assert (await ask(shop, "POST", "/hello/x", Sec_Fetch_Site="cross-site")).status == 200
        refused = await ask(shop, "POST", "/hello/x", OTHER)
        assert (refused.status, refused.json["code"]) == (403, "cross_site")
        assert (await ask(shop, "POST", "/closed")).status == 403
        assert len(shop.node.calls) == 1

    async def test_it_is_in_the_chain_only_while_a_route_needs_it(self, front: Front) -> None:
        assert (await front.get("/mesh")).json["edge"] == []
        assert not front.gateway._wrapped
        record = RouteRecord("GET", "/open", "search", edge=EdgePolicy(cors=["*"]))
        front.node.serve("open", [record], search=search)
        assert front.gateway._wrapped
        assert [each["name"] for each in (await front.get("/mesh")).json["edge"]] == ["cors"]


class TestARouteBesideAGateway:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return with_gateway(settings, origins=[OTHER])

    async def test_the_list_of_a_route_replaces_that_of_the_gateway(self, front: Front) -> None:
        record = RouteRecord("POST", "/hello/{name}", "hello", {"name": "path"}, edge=EdgePolicy(cors=[APP]))
        front.node.serve("shop", [record], hello=hello)
        assert (await ask(front, "POST", "/hello/x", APP)).status == 200
        assert (await ask(front, "POST", "/hello/x", OTHER)).status == 403
        assert (await ask(front, "GET", "/mesh", OTHER)).headers["Access-Control-Allow-Origin"] == OTHER

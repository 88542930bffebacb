"""The options of decorators for gateways: `auth`, `limit`, `max_body`, `cors`, `cache`."""

from typing import Any

import msgspec
import pytest

import mesh
from mesh import http
from mesh.calls.declared import BadDeclaration
from mesh.discovery.record import EdgePolicy, Instance
from mesh.service.describe import record
from mesh.service.edge_options import read_edge


class Shop(mesh.Service):
    @http.get("/orders", auth=http.scopes("orders:read") & http.roles("clerk", "manager"), limit="100/m by tenant")
    async def orders(self) -> int:
        return 0

    @mesh.rpc(expose=True, auth="user", max_body="2KiB")
    async def order(self) -> int:
        return 0

    @mesh.task(expose=True, auth=None)
    async def ship(self) -> None: ...

    @http.get("/plain")
    async def plain(self) -> int:
        return 0


def test_records_carry_the_options():
    instance = record(Shop, id="shop-1", epoch=1)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(instance), type=Instance)
    routes = {route.path: route for route in read.routes}
    assert routes["/orders"].edge == EdgePolicy(
        auth="user", scopes=["orders:read"], roles=["clerk", "manager"], rates=["100/m by tenant"]
    )
    assert routes["/plain"].edge is None
    assert read.methods["order"].edge == EdgePolicy(auth="user", max_body_bytes=2048)
    assert read.tasks["ship"].edge == EdgePolicy(auth="none")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, None),
        ({"auth": None}, EdgePolicy(auth="none")),
        ({"auth": "user"}, EdgePolicy(auth="user")),
        ({"limit": ["10/5s", "1000/d by address"]}, EdgePolicy(rates=["10/5s", "1000/d by address"])),
        ({"max_body": 10}, EdgePolicy(max_body_bytes=10)),
        ({"cors": "https://app.example"}, EdgePolicy(cors=["https://app.example"])),
        ({"cache": "public, max-age=60"}, EdgePolicy(cache="public, max-age=60")),
    ],
)
def test_options_are_read(options: Any, found: EdgePolicy | None):
    assert read_edge("@http.get", options) == found


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"auht": "user"}, "auht"),
        ({"auth": "admin"}, "admin"),
        ({"auth": True}, "True"),
        ({"limit": "100"}, "100"),
        ({"limit": "0/s"}, "0/s"),
        ({"limit": "5/s by colour"}, "colour"),
        ({"max_body": "2"}, "2"),
        ({"max_body": -1}, "-1"),
        ({"cors": "app.example"}, "app.example"),
        ({"cache": "a\nb"}, "Cache-Control"),
    ],
)
def test_wrong_options_are_refused_by_name(options: Any, named: str):
    with pytest.raises(BadDeclaration) as caught:
        read_edge("@http.get('/x')", options)
    assert named in str(caught.value)


@pytest.mark.parametrize("make", [http.scopes, http.roles])
@pytest.mark.parametrize("names", [(), ("",), ("a b",), (1,)])
def test_wrong_names_are_refused(make: Any, names: Any):
    with pytest.raises(BadDeclaration):
        make(*names)

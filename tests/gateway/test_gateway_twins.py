"""A call and a stream on one address: a snapshot for most, how it goes on for those who ask for events."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from gateway_fakes import FakeNode

import mesh
from mesh import http, rpc
from mesh.calls.declared import BadDeclaration
from mesh.config import Settings
from mesh.gateway.catalog import Catalog
from mesh.gateway.server import Gateway
from mesh.service.describe import record


class Albums(mesh.Service):
    name = "albums"

    @http.get("/albums/{id}")
    @rpc
    async def album(self, id: str) -> int:
        """One album."""
        return 1

    @http.get("/albums/{id}")
    @rpc
    async def follow(self, id: str) -> AsyncIterator[int]:
        yield 1


async def test_one_address_has_a_call_and_a_stream() -> None:
    """Whichever was declared first, the call is the route and the stream stands beside it."""
    node = FakeNode()
    node.join(record(Albums, id="albums-1", epoch=1, endpoint="mem://a"))
    catalog = Catalog(node.table)
    route, values = catalog.routes.find("GET", "/albums/a1")
    assert (route.name, values) == ("album", ["a1"])
    assert route.stream is not None
    assert route.stream.name == "follow"
    assert catalog.routes.conflicts == []


async def test_the_document_has_one_operation_with_both_forms() -> None:
    """OpenAPI knows one operation for a path and verb: its answer has all content types."""
    node = FakeNode()
    node.join(record(Albums, id="albums-1", epoch=1, endpoint="mem://a"))
    operation = msgspec.json.decode(Gateway(node, Settings()).openapi())["paths"]["/albums/{id}"]["get"]
    assert set(operation["responses"]["200"]["content"]) == {
        "application/json",
        "text/event-stream",
        "application/x-ndjson",
    }


def test_two_calls_on_one_address_are_still_refused() -> None:
    """Only a call and a stream can be told apart."""
    with pytest.raises(BadDeclaration, match=r"GET /x/\{name\}"):

        class Twice(mesh.Service):
            @http.get("/x/{id}")
            async def one(self, id: str) -> int:
                return 1

            @http.get("/x/{name}")
            async def two(self, name: str) -> int:
                return 2

"""Uploads: the body of a request as the items of a client stream."""

from __future__ import annotations

import asyncio
import hashlib
import io
import resource
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import mesh
from mesh import http
from mesh.calls.declared import BadDeclaration
from mesh.testing import Mesh, no_leaks
from tests.gateway.gateway_served import Served, served
from tests.patience import until

pytestmark = pytest.mark.timeout(60)


class Row(msgspec.Struct):
    id: int


class Files(mesh.Service):
    def __init__(self) -> None:
        self.cancelled = 0
        self.began = asyncio.Event()

    @http.put("/files/{name}", max_body="1GiB")
    async def put(self, name: str, chunks: AsyncIterator[bytes], note: str = "") -> http.Response[dict[str, Any]]:
        digest, size = hashlib.sha256(), 0
        async for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
        found = {"name": name, "size": size, "sha256": digest.hexdigest(), "note": note}
        return http.Response(found, status=201, headers={"Location": f"/files/{name}"})

    @http.post("/small")
    async def small(self, chunks: AsyncIterator[bytes]) -> int:
        return sum([len(chunk) async for chunk in chunks])

    @http.post("/rows")
    async def rows(self, rows: AsyncIterator[Row]) -> list[int]:
        return [row.id async for row in rows]

    @http.post("/upper", produces="text/plain")
    async def upper(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk.upper()

    @http.post("/first")
    async def first(self, chunks: AsyncIterator[bytes]) -> int:
        async for chunk in chunks:
            return len(chunk)
        return 0

    @http.post("/refuses")
    async def refuses(self, chunks: AsyncIterator[bytes]) -> int:
        raise mesh.Forbidden("no uploads today")

    @http.post("/waits")
    async def waits(self, chunks: AsyncIterator[bytes]) -> int:
        try:
            self.began.set()
            async for _ in chunks:
                pass
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return 0

    @mesh.rpc(expose=True)
    async def named(self, chunks: AsyncIterator[bytes]) -> int:
        return 0


@pytest.fixture
async def mesh_() -> AsyncIterator[Mesh]:
    async with (
        no_leaks(),
        Mesh(Files, transport="ipc", settings={"gateway": {"max_body": "1MiB"}, "log": {"level": "error"}}) as m,
    ):
        yield m


@pytest.fixture
async def web(mesh_: Mesh) -> AsyncIterator[Served]:
    async with served(mesh_) as web:
        await until(lambda: web.gateway.catalog.offers)
        yield web


async def chunks_of(count: int, size: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number % 256]) * size


@pytest.mark.parametrize(("count", "size"), [(0, 1), (1, 1), (3, 100_000), (200, 300_000)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_the_body_reaches_the_handler(web: Served, count: int, size: int, chunked: bool):
    whole = b"".join([chunk async for chunk in chunks_of(count, size)])
    body: Any = chunks_of(count, size) if chunked else io.BytesIO(whole)
    async with web.http.put("/files/a%20b?note=x", data=body) as answer:
        assert (answer.status, answer.headers["Location"]) == (201, "/files/a b")
        assert await answer.json() == {
            "name": "a b",
            "size": len(whole),
            "sha256": hashlib.sha256(whole).hexdigest(),
            "note": "x",
        }


async def test_neither_end_holds_the_body(web: Served):
    """300 MB: gateway, worker and client are this process, whose peak grows by a fraction of that."""
    async with web.http.put("/files/warm", data=chunks_of(20, 2**20)) as answer:
        assert answer.status == 201
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with web.http.put("/files/big", data=chunks_of(300, 2**20)) as answer:
        assert (await answer.json())["size"] == 300 * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024


async def test_a_body_above_the_limit(web: Served):
    for body in (io.BytesIO(bytes(2**20 + 1)), chunks_of(20, 100_000)):
        async with web.http.post("/small", data=body) as answer:
            assert (answer.status, (await answer.json())["code"]) == (413, "too_large")
    async with web.http.post("/small", data=io.BytesIO(bytes(2**20))) as answer:
        assert await answer.json() == 2**20


async def test_ndjson_is_one_item_per_line(web: Served):
    headers = {"Content-Type": "application/x-ndjson"}
    lines = b"".join(b'{"id": %d}\n' % n for n in range(1000)) + b'\n{"id": 1000}'
    async with web.http.post("/rows", data=io.BytesIO(lines), headers=headers) as answer:
        assert await answer.json() == list(range(1001))
    async with web.http.post("/rows", headers=headers) as answer:
        assert await answer.json() == []
    for bad, path in ((b'{"id": "x"}\n', "$.rows"), (b"{", "$.rows")):
        async with web.http.post("/rows", data=bad, headers=headers) as answer:
            problem = await answer.json()
            assert (answer.status, problem["code"], problem["details"]["path"]) == (400, "bad_arguments", path)
    async with web.http.post("/rows", data=chunks_of(20, 100_000), headers=headers) as answer:
        assert (answer.status, (await answer.json())["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/rows", "application/json"),
        ("/rows", "text/plain"),
        ("/small", "multipart/form-data; boundary=x"),
        ("/small", "application/x-www-form-urlencoded"),
    ],
)
async def test_another_type_of_body_is_refused(web: Served, path: str, kind: str):
    async with web.http.post(path, data=b"[]", headers={"Content-Type": kind}) as answer:
        assert (answer.status, (await answer.json())["code"]) == (415, "unsupported_media")


async def test_both_directions(web: Served):
    async with web.http.post("/upper", data=chunks_of(3, 10), headers={"Accept": "application/octet-stream"}) as answer:
        assert answer.status == 200
        await answer.read()
    async with web.http.post("/upper", data=b"abc") as answer:
        assert (await answer.read(), answer.content_type) == (b"ABC", "text/plain")


async def test_an_early_answer_closes_the_connection(web: Served):
    """The rest of the body is not read."""
    async with web.http.post("/first", data=io.BytesIO(bytes(2**20))) as answer:
        assert answer.status == 200
    web.gateway.bodies.most = 2**30
    async with web.http.post("/first", data=chunks_of(1000, 100_000)) as answer:
        assert answer.status == 200
        assert answer.headers["Connection"] == "close"
    async with web.http.post("/first", data=b"x") as answer:
        assert await answer.json() == 1
    async with web.http.post("/refuses", data=chunks_of(10, 100_000)) as answer:
        assert (answer.status, (await answer.json())["code"]) == (403, "forbidden")


async def test_a_client_that_disappears_cancels_the_handler(web: Served, mesh_: Mesh):
    (files,) = mesh_.instances(Files)
    host, port = web.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /waits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
    await files.began.wait()
    writer.close()
    await until(lambda: files.cancelled == 1)


async def test_a_method_with_a_stream_has_no_address_by_name(web: Served):
    async with web.http.post("/rpc/files/named", json={}) as answer:
        assert (answer.status, (await answer.json())["code"]) == (400, "bad_arguments")


async def test_openapi_has_the_body(web: Served):
    async with web.http.get("/openapi.json") as answer:
        paths = (await answer.json())["paths"]
    put = paths["/files/{name}"]["put"]
    assert list(put["requestBody"]["content"]) == ["application/octet-stream"]
    assert [each["name"] for each in put["parameters"]][:2] == ["name", "note"]
    assert list(paths["/rows"]["post"]["requestBody"]["content"]) == ["application/x-ndjson"]
    assert "/rpc/files/named" not in paths


async def test_a_get_cannot_upload():
    class Odd(mesh.Service):
        @http.get("/x")
        async def read(self, chunks: AsyncIterator[bytes]) -> int:
            return 0

    with pytest.raises(BadDeclaration):
        async with Mesh(Odd):
            pass

"""Tasks over HTTP, on a real mesh in this process: 202 with a Location, jobs, options, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiohttp
import msgspec
import pytest

import mesh
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.testing import Mesh


class Photo(msgspec.Struct):
    pixels: bytes
    labels: dict[int, str] = {}
    price: Decimal = Decimal(0)


class Shop(mesh.Service):
    """Sells things."""

    name = "shop"
    expose = True
    ran: list[Any] = []
    gate: asyncio.Event

    @mesh.task
    async def charge(self, order: str, amount: int = 1) -> dict[str, Any]:
        Shop.ran.append((order, amount))
        return {"order": order, "amount": amount}

    @mesh.task
    async def store(self, image: bytes, name: str = "") -> int:
        Shop.ran.append((image, name))
        return len(image)

    @mesh.task
    async def keep(self, photos: list[Photo], names: dict[int, str], price: Decimal) -> list[Any]:
        Shop.ran.append((photos, names, price))
        return [[photo.pixels for photo in photos], price]

    @mesh.rpc
    async def kept(self, photos: list[Photo], names: dict[int, str], price: Decimal) -> list[Any]:
        return await self.keep(photos, names, price)

    @mesh.task
    async def wait(self) -> None:
        await Shop.gate.wait()

    @mesh.task(retries=0)
    async def fail(self) -> None:
        raise ValueError("out of paper")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    Shop.ran, Shop.gate = [], asyncio.Event()
    async with Mesh(Shop) as m:
        gateway = Gateway(m.node, m.settings)
        server = gateway.make_server()
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        async with aiohttp.ClientSession(app.shown(listener)) as session:
            yield session
        accepting.close()
        await server.shutdown(0.2)


async def defer(http: aiohttp.ClientSession, path: str, **options: Any) -> tuple[int, str, Any]:
    async with http.post(path, **options) as answer:
        return answer.status, answer.headers.get("Location", ""), await answer.json(content_type=None)


async def job(http: aiohttp.ClientSession, location: str) -> Any:
    async with http.get(location) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_a_task_is_accepted_and_its_job_tells_what_became_of_it(http: aiohttp.ClientSession) -> None:
    """202 at once, a Location that works, and the answer there when it is done."""
    status, location, told = await defer(http, "/tasks/shop/charge", json={"order": "o-1", "amount": 3})
    assert status == 202
    assert location == told["job"] == f"/jobs/{told['id']}"
    assert told["task"] == "shop.charge"
    shown = await job(http, f"{location}?wait=10s")
    assert shown["status"] == "done"
    assert shown["result"] == {"order": "o-1", "amount": 3}
    assert shown["attempt"] == 1
    assert shown["created_at"].endswith("Z")


async def test_positional_arguments_and_messagepack(http: aiohttp.ClientSession) -> None:
    """The same forms as /rpc takes."""
    _, location, _ = await defer(http, "/tasks/shop/charge", json=["o-2", 5])
    assert (await job(http, f"{location}?wait=10s"))["result"]["amount"] == 5
    packed = {"data": msgspec.msgpack.encode({"order": "o-3"}), "headers": {"Content-Type": "application/msgpack"}}
    _, location, _ = await defer(http, "/tasks/shop/charge", **packed)
    assert (await job(http, f"{location}?wait=10s"))["result"]["order"] == "o-3"
    async with http.get(location, headers={"Accept": "application/msgpack"}) as answer:
        assert msgspec.msgpack.decode(await answer.read())["result"]["order"] == "o-3"


async def test_bytes_as_the_body_and_as_base64(http: aiohttp.ClientSession) -> None:
    """A task with one argument of bytes takes the body itself, the other arguments from the query."""
    sent = {"data": b"\xff\xd8image", "headers": {"Content-Type": "image/jpeg"}}
    _, location, _ = await defer(http, "/tasks/shop/store?name=cat", **sent)
    assert (await job(http, f"{location}?wait=10s"))["result"] == 7
    _, location, _ = await defer(http, "/tasks/shop/store", json={"image": "/9g=", "name": "dog"})
    assert (await job(http, f"{location}?wait=10s"))["result"] == 2
    assert Shop.ran == [(b"\xff\xd8image", "cat"), (b"\xff\xd8", "dog")]


KEPT = (
    b'{"photos": [{"pixels": "/9g=", "labels": {"7": "cat"}, "price": 1234567890123456789.01}], '
    b'"names": {"3": "x"}, "price": 1234567890123456789.01}'
)
PRICE = Decimal("1234567890123456789.01")


@pytest.mark.parametrize("form", ["named", "positional", "msgpack"])
async def test_arguments_reach_the_task_as_rpc_would_pass_them(http: aiohttp.ClientSession, form: str) -> None:
    """Keys that are numbers, bytes within a struct, and every digit of a number: the body is passed on unread."""
    photo = {"pixels": b"\xff\xd8", "labels": {7: "cat"}, "price": str(PRICE)}
    body, kind = {
        "named": (KEPT, "application/json"),
        "positional": (b'[[{"pixels": "/9g=", "labels": {"7": "cat"}, "price": %b}], {"3": "x"}, %b]'
                       % ((str(PRICE).encode(),) * 2), "application/json"),
        "msgpack": (msgspec.msgpack.encode([[photo], {3: "x"}, str(PRICE)]), "application/msgpack"),
    }[form]  # fmt: skip
    sent = {"data": body, "headers": {"Content-Type": kind}}
    async with http.post("/rpc/shop/kept", **sent) as answer:
        assert answer.status == 200, await answer.text()
    status, location, _ = await defer(http, "/tasks/shop/keep", **sent)
    assert status == 202
    assert (await job(http, f"{location}?wait=10s"))["result"] == [["/9g="], str(PRICE)]
    assert Shop.ran[0] == Shop.ran[1] == ([Photo(b"\xff\xd8", {7: "cat"}, PRICE)], {3: "x"}, PRICE)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (KEPT.replace(b'"/9g="', b"5"), "body.photos[0].pixels"),
        (KEPT.replace(b'"/9g="', b'"?"'), "body.photos[0].pixels"),
        (KEPT.replace(b'"x"', b"1"), "body.names[...]"),
        (KEPT.replace(b'"pixels"', b'"pixel"'), "body.photos[0].pixels"),
        (b'{"photos": [], "names": {}, "price": "cheap"}', "body.price"),
        (b'{"photos": [], "names": {}}', "body.price"),
        (b"[[], {}]", "body"),
        (b"[" * 90 + b"]" * 90, "body.photos"),
        (b"[" * 101 + b"]" * 101, "body"),
        (b'{"photos": ' + b"[" * 90 + b"]" * 90 + b', "names": {}, "price": 1}', "body.photos[...]"),
    ],
)
async def test_what_no_worker_could_read_is_refused_at_once(
    http: aiohttp.ClientSession, body: bytes, place: str
) -> None:
    """A wrong type is a 400 with its place, not a job that ends as undecodable."""
    status, _, told = await defer(http, "/tasks/shop/keep", data=body, headers={"Content-Type": "application/json"})
    assert (status, told["code"]) == (400, "bad_arguments")
    assert told["details"]["path"].partition("[")[0] == place.partition("[")[0]
    assert Shop.ran == []


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"order": 5}, "body.order"),
        ({"order": b"o"}, "body.order"),
        ([5], "body.order"),
        ({"photos": [{"pixels": "/9g="}], "names": {}, "price": "1"}, "body.photos"),
        ({"photos": [{"pixels": 5}], "names": {}, "price": "1"}, "body.photos"),
        ({"photos": [], "names": {3: 5}, "price": "1"}, "body.names"),
        ({"photos": [], "names": {}, "price": "cheap"}, "body.price"),
        ({"photos": [], "names": {}, "price": msgspec.msgpack.Ext(1, b"")}, "body.price"),
    ],
)
async def test_messagepack_that_no_worker_could_read_is_refused_at_once(
    http: aiohttp.ClientSession, arguments: Any, place: str
) -> None:
    """Types that MessagePack has and JSON has not are told apart: text, bytes, extensions."""
    task = "keep" if isinstance(arguments, dict) and "price" in arguments else "charge"
    sent = {"data": msgspec.msgpack.encode(arguments), "headers": {"Content-Type": "application/msgpack"}}
    status, _, told = await defer(http, f"/tasks/shop/{task}", **sent)
    assert (status, told["code"], told["details"]["path"].partition("[")[0]) == (400, "bad_arguments", place)
    assert Shop.ran == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/tasks/shop/charge", None),
        ("/tasks/shop/charge", "text/plain"),
        ("/tasks/shop/charge", "application/x-www-form-urlencoded"),
        ("/tasks/shop/store", "multipart/form-data; boundary=x"),
        ("/tasks/shop/store", "application/x-www-form-urlencoded"),
    ],
)
async def test_a_body_of_another_type_is_a_415(http: aiohttp.ClientSession, path: str, kind: str | None) -> None:
    """As at /rpc: nothing is deferred."""
    headers = {"Content-Type": kind} if kind else {}
    sent = {"data": b'{"order": "o"}', "headers": headers, "skip_auto_headers": ["Content-Type"]}
    status, _, told = await defer(http, path, **sent)
    assert (status, told["code"]) == (415, "unsupported_media")
    assert Shop.ran == []


async def test_the_same_idempotency_key_defers_once(http: aiohttp.ClientSession) -> None:
    """A repeated request is answered with the first job, also when it is done."""
    headers = {"Idempotency-Key": '"abc-1"'}
    _, first, _ = await defer(http, "/tasks/shop/charge", json={"order": "o"}, headers=headers)
    await job(http, f"{first}?wait=10s")
    status, second, _ = await defer(http, "/tasks/shop/charge", json={"order": "o"}, headers=headers)
    assert (status, second) == (202, first)
    assert len(Shop.ran) == 1
    status, third, _ = await defer(http, "/tasks/shop/charge?key=abc-1", json={"order": "o"})
    assert third == first


async def test_an_idempotency_key_belongs_to_one_request(http: aiohttp.ClientSession) -> None:
    """Other arguments, or other options, with the same key: 422, nothing is deferred, and the first job is named."""
    headers = {"Idempotency-Key": "abc-2"}
    _, first, _ = await defer(http, "/tasks/shop/charge", json={"order": "o"}, headers=headers)
    for path, body in (("/tasks/shop/charge", {"order": "p"}), ("/tasks/shop/charge?delay=5s", {"order": "o"})):
        status, location, told = await defer(http, path, json=body, headers=headers)
        assert (status, location, told["code"]) == (422, "", "idempotency_key_reused")
        assert told["details"] == {"path": "header.Idempotency-Key", "job": first.removeprefix("/jobs/")}
    await job(http, f"{first}?wait=10s")
    assert len(Shop.ran) == 1
    # Of another task the same key is another key.
    assert (await defer(http, "/tasks/shop/wait", headers=headers))[0] == 202


@pytest.mark.parametrize(
    "lines",
    [
        b"Idempotency-Key: \xe9",
        b"Idempotency-Key: a\r\nIdempotency-Key: b",
        b"Idempotency-Key: ",
        b'Idempotency-Key: ""',
        b"Idempotency-Key: " + b"k" * 2000,
    ],
)
async def test_an_idempotency_key_that_is_no_key_is_a_400(http: aiohttp.ClientSession, lines: bytes) -> None:
    """Also bytes that are not UTF-8, and two keys at once: nothing is deferred."""
    async with http.get("/livez") as found:
        port = found.url.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /tasks/shop/charge HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%b\r\n"
        b'Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{"order":"o"}' % lines
    )
    told = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert told[9:12] == b"400"
    assert b'"bad_arguments"' in told
    assert Shop.ran == []


async def test_options_stand_in_the_query(http: aiohttp.ClientSession) -> None:
    """Delay, priority and order reach the job; a delayed job can be cancelled."""
    _, location, _ = await defer(http, "/tasks/shop/charge?delay=1h&priority=8&order=u1", json={"order": "o"})
    shown = await job(http, location)
    assert (shown["status"], shown["priority"], shown["order"]) == ("delayed", 8, "u1")
    async with http.delete(location) as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "cancelled")
    _, location, _ = await defer(http, "/tasks/shop/charge?at=2100-01-01T00:00:00Z", json={"order": "o"})
    assert (await job(http, location))["due_at"] == "2100-01-01T00:00:00.000Z"
    assert Shop.ran == []


async def test_a_running_job_is_cancelled_over_http(http: aiohttp.ClientSession) -> None:
    """DELETE stops the handler; waiting for less than it takes shows it as it stands."""
    _, location, _ = await defer(http, "/tasks/shop/wait")
    while (await job(http, f"{location}?wait=50ms"))["status"] != "running":
        pass
    async with http.delete(location) as answer:
        assert answer.status == 200
    assert (await job(http, f"{location}?wait=10s"))["status"] == "cancelled"


async def test_a_job_that_failed_tells_its_reason_but_no_text(http: aiohttp.ClientSession) -> None:
    """The reason is for the client, the inside of the service is not."""
    _, location, _ = await defer(http, "/tasks/shop/fail")
    shown = await job(http, f"{location}?wait=10s")
    assert shown["status"] == "dead"
    assert shown["error"]["reason"] == "failed"
    assert "out of paper" not in shown["error"]["message"]
    assert "Traceback" not in msgspec.json.encode(shown).decode()


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "code", "part"),
    [
        ("POST", "/tasks/shop/chrage", b"{}", 404, "unknown_method", '"charge"?'),
        ("POST", "/tasks/shpo/charge", b"{}", 404, "unknown_service", '"shop"?'),
        ("POST", "/tasks/shop", b"{}", 404, "unknown_route", "POST /tasks/SERVICE/TASK"),
        ("GET", "/tasks/shop/charge", b"", 405, "method_not_allowed", "POST"),
        ("POST", "/tasks/shop/charge", b"{", 400, "bad_arguments", "body: "),
        ("POST", "/tasks/shop/charge", b"3", 400, "bad_arguments", "body: "),
        ("POST", "/tasks/shop/charge", b"{}", 400, "bad_arguments", "body.order: "),
        ("POST", "/tasks/shop/charge", b'{"order":"o","amuont":1}', 400, "bad_arguments", '"amount"?'),
        ("POST", "/tasks/shop/charge?dealy=5m", b'{"order":"o"}', 400, "bad_arguments", '"delay"?'),
        ("POST", "/tasks/shop/charge?delay=soon", b'{"order":"o"}', 400, "bad_arguments", "soon"),
        ("POST", "/tasks/shop/charge?priority=11", b'{"order":"o"}', 400, "bad_arguments", "0 to 9"),
        ("POST", "/tasks/shop/charge?priority=x", b'{"order":"o"}', 400, "bad_arguments", "0 to 9"),
        ("POST", "/tasks/shop/charge?at=tomorrow", b'{"order":"o"}', 400, "bad_arguments", "2030-01-31"),
        ("POST", "/tasks/shop/charge?delay=1s&delay=2s", b"{}", 400, "bad_arguments", "query.delay: "),
        ("POST", "/tasks/shop/store", b'{"image":"?"}', 400, "bad_arguments", "base64"),
        ("GET", "/jobs/none", b"", 404, "unknown_job", "none"),
        ("DELETE", "/jobs/none", b"", 404, "unknown_job", "none"),
        ("GET", "/jobs/a/b", b"", 404, "unknown_route", "/jobs/ID"),
        ("POST", "/jobs/none", b"", 405, "method_not_allowed", "/jobs/none"),
        ("GET", "/jobs/none?wait=x", b"", 400, "bad_arguments", "wait"),
        ("GET", "/jobs/none?weit=1s", b"", 400, "bad_arguments", '"wait"?'),
    ],
)
async def test_what_is_wrong_is_told(
    http: aiohttp.ClientSession, verb: str, path: str, body: bytes, status: int, code: str, part: str
) -> None:
    """Status, code and a sentence that names the place and the remedy; nothing is deferred."""
    async with http.request(verb, path, data=body or None, headers={"Content-Type": "application/json"}) as answer:
        told = await answer.json(content_type=None)
    assert (answer.status, told["code"]) == (status, code), told
    assert part in told["detail"]
    assert Shop.ran == []


async def test_options_tells_what_is_allowed(http: aiohttp.ClientSession) -> None:
    """As everywhere else at the gateway."""
    for path, allow in (("/tasks/shop/charge", "POST"), ("/jobs/x", "DELETE")):
        async with http.options(path) as answer:
            assert (answer.status, allow in answer.headers["Allow"]) == (204, True)

"""What a client reads of a failure, and what the log does."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front, Told, eventually
from gateway_shop import open_shop

from mesh.config import Settings
from mesh.discovery.record import RouteRecord
from mesh.errors import Forbidden, LinkLost, LockTaken, MethodNotAllowed, RemoteError, Unavailable
from mesh.gateway.problems import Problems
from mesh.telemetry import logs
from tests.patience import until

SECRET = "10.1.2.3:5432"
TRACE = "0af7651916cd43dd8448eb211c80319c"
ASKED = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


async def leaks() -> None:
    raise ConnectionRefusedError(111, f"Connect call failed {SECRET}")


async def breaks_off(n: int = 1) -> AsyncIterator[int]:
    yield n
    raise ConnectionRefusedError(111, f"Connect call failed {SECRET}")


async def away() -> None:
    raise Unavailable(f"no instance at {SECRET}", details={"retry_after_s": 7, "endpoint": SECRET})


async def lost() -> None:
    raise LinkLost(f"link to {SECRET} broke")


async def locked() -> None:
    raise LockTaken("held", details={"owner": SECRET})


async def forbidden() -> None:
    raise Forbidden(f"no rule of {SECRET}")


async def closed() -> None:
    raise RemoteError("closed until nine", code="closed", status=503, type_name="Closed")


async def half() -> None:
    raise RemoteError(SECRET, code="payment_failed", status=500, type_name="PaymentFailed")


async def dozes() -> str:
    await asyncio.sleep(0.05)
    return "awake"


LEAKY = {
    each.__name__: each for each in (leaks, breaks_off, away, lost, locked, forbidden, closed, half, dozes)
}  # fmt: skip


@pytest.fixture
def leaky(front: Front) -> Front:
    routes = [RouteRecord("GET", f"/{name.replace('_', '-')}", name) for name in LEAKY]
    front.node.serve("leaky", routes, **LEAKY)
    return front


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """The log, as JSON lines."""
    stream = io.StringIO()
    logs.configure(format="json", stream=stream)
    yield stream
    logs.reset()


def of_trace(lines: io.StringIO, trace: str = TRACE) -> list[dict[str, Any]]:
    return [line for line in map(msgspec.json.decode, lines.getvalue().splitlines()) if line.get("trace_id") == trace]


class TestPublic:
    @pytest.mark.parametrize(
        ("path", "status", "code"),
        [
            ("/leaks", 500, "handler_error"),
            ("/half", 500, "payment_failed"),
            ("/away", 503, "unavailable"),
            ("/lost", 502, "link_lost"),
            ("/locked", 423, "lock_taken"),
            ("/forbidden", 403, "forbidden"),
        ],
    )
    @pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
    async def test_nothing_of_the_inside_is_told(
        self, leaky: Front, lines: io.StringIO, path: str, status: int, code: str, accept: str
    ) -> None:
        """Status, code and trace id; the text is in the one line of the log that has this trace."""
        for told in (
            await leaky.get(path, headers={**ASKED, "Accept": accept}),
            await leaky.post(f"/rpc/leaky{path}", b"{}", Accept=accept, **ASKED),
        ):
            assert (told.status, told.json["code"], told.json["trace_id"]) == (status, code, TRACE)
            assert SECRET.encode() not in told.body
            assert b"ConnectionRefused" not in told.body
            assert "exception" not in told.json
            assert "details" not in told.json
        logged = of_trace(lines)
        assert [line["status"] for line in logged] == [status, status]
        assert path in ("/locked",) or all(SECRET in line["error"] for line in logged)

    async def test_retry_after_is_no_secret(self, leaky: Front) -> None:
        """The worker's advice stays."""
        assert (await leaky.get("/away")).headers["Retry-After"] == "7"

    async def test_what_a_service_declared_is_for_clients(self, leaky: Front) -> None:
        """An error with a code and a status of its own is sent as it is."""
        told = await leaky.get("/closed")
        assert (told.status, told.json["code"], told.json["detail"]) == (503, "closed", "closed until nine")

    @pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
    async def test_a_stream_that_breaks_tells_as_little(self, leaky: Front, lines: io.StringIO, accept: str) -> None:
        """Also after the head, where the error is the last event."""
        told = await leaky.get("/breaks-off", headers={**ASKED, "Accept": accept})
        assert told.status == 200
        assert SECRET.encode() not in told.body
        assert TRACE.encode() in told.body
        line = of_trace(lines)[0]
        assert SECRET in line["error"]
        assert (line["event"], line["level"]) == ("request.failed", "error")


class TestDebug:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, debug=True))

    async def test_for_development_everything_is_told(self, leaky: Front) -> None:
        """Type name and text."""
        told = await leaky.get("/leaks")
        assert told.json["exception"] == "ConnectionRefusedError"
        assert SECRET in told.json["detail"]


# --- lines --------------------------------------------------------------------------------------------


async def test_a_failure_has_one_line(leaky: Front, lines: io.StringIO) -> None:
    """What was asked, by which client, how it ended and how long it took; what succeeds has none."""
    await leaky.get("/leaks?card=4242", headers=ASKED)
    await leaky.get("/nowhere", headers=ASKED)
    [line] = of_trace(lines)
    shown = {name: line[name] for name in ("level", "method", "path", "status", "client", "target", "code", "bytes_in")}
    assert shown == {
        "level": "error",
        "method": "GET",
        "path": "/leaks",
        "status": 500,
        "client": "127.0.0.1",
        "target": "leaky.leaks",
        "code": "handler_error",
        "bytes_in": 0,
    }
    assert 0 <= line["duration_ms"] < 5000
    assert line["bytes_out"] > 0


class TestSlow:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return msgspec.structs.replace(settings, log=msgspec.structs.replace(settings.log, slow_s=0.02))

    async def test_a_slow_request_has_a_line(self, leaky: Front, lines: io.StringIO) -> None:
        """Longer than log.slow."""
        await leaky.get("/dozes", headers=ASKED)
        [line] = of_trace(lines)
        assert (line["event"], line["status"], line["level"]) == ("request.slow", 200, "warning")
        assert line["duration_ms"] >= 20


class TestEvery:
    @pytest.fixture(params=["json", "combined"])
    def settings(self, settings: Settings, request: pytest.FixtureRequest) -> Settings:
        logged = msgspec.structs.replace(settings.gateway, access_log=request.param, proxies=["127.0.0.0/8"])
        return msgspec.structs.replace(settings, gateway=logged)

    async def test_every_request_has_a_line(
        self, leaky: Front, lines: io.StringIO, settings: Settings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As JSON, or as Apache writes it; the client is the one that the trusted proxy names."""
        open_shop(leaky.node)
        said = {**ASKED, "X-Forwarded-For": "6.6.6.6, 203.0.113.9", "User-Agent": 'curl"8'}
        await leaky.get("/hello/x", headers=said)
        if settings.gateway.access_log == "json":
            # Lines of this kind are written in batches.
            await until(lambda: of_trace(lines))
            [line] = of_trace(lines)
            assert (line["event"], line["status"], line["client"]) == ("request.answered", 200, "203.0.113.9")
        else:
            out = capsys.readouterr().out
            assert out.startswith("203.0.113.9 - - [")
            assert out.endswith(' "GET /hello/x HTTP/1.1" 200 11 "-" "curl\\"8"\n')


async def test_a_flood_of_failures_is_no_flood_of_lines(leaky: Front, lines: io.StringIO) -> None:
    """Beyond 100 in a second, their number is logged."""
    leaky.gateway.log._now = lambda: 5.0
    for _ in range(130):
        await leaky.get("/away", headers=ASKED)
    assert len(of_trace(lines)) == 100
    leaky.gateway.log._now = lambda: 6.0
    await leaky.get("/away", headers=ASKED)
    assert of_trace(lines)[-1]["suppressed"] == 30


# --- heads --------------------------------------------------------------------------------------------


def test_nothing_of_a_workers_error_reaches_the_head() -> None:
    """Line breaks in `allow`, a status that is none, a time to wait that is none."""
    for allow in ("GET\r\nSet-Cookie: a=b", "GET\nX: y", "a b", ["GET"], "é"):
        assert b"\n" not in Problems().reply(MethodNotAllowed("", details={"allow": allow})).extra.rstrip(b"\r\n")
        assert b"Cookie" not in Problems().reply(MethodNotAllowed("", details={"allow": allow})).extra
    assert Problems().reply(MethodNotAllowed("", details={"allow": "GET, HEAD"})).extra == b"Allow: GET, HEAD\r\n"
    for status in (0, 100, 204, 700, -1):
        assert Problems().reply(RemoteError("", status=status, code="x")).status == 500
    for after in ("1\r\nX: y", float("inf"), -1, [], 10**9):
        assert Problems().reply(Unavailable("", details={"retry_after_s": after})).extra == b"Retry-After: 1\r\n"


async def test_nothing_of_a_workers_record_reaches_the_head(front: Front) -> None:
    """A media type with a line break is left out; so is a status that is not that of a success."""
    records = [
        RouteRecord("GET", "/a", "page", produces="text/html\r\nSet-Cookie: a=b"),
        RouteRecord("GET", "/b", "page", status=101),
    ]

    async def page() -> str:
        return "x"

    front.node.serve("evil", records, page=page)
    for path in ("/a", "/b"):
        told = await front.get(path)
        assert (told.status, told.kind) == (200, "application/json")
        assert "Set-Cookie" not in told.headers


DEEP = b"[" * 1000 + b"]" * 1000
DEEP_MAP = b'{"item": ' + DEEP + b"}"
PACKED = b"\x91" * 1000 + b"\xc0"


@pytest.mark.parametrize(
    ("verb", "path", "body", "kind"),
    [
        ("POST", "/items", DEEP, "application/json"),
        ("POST", "/items", DEEP_MAP, "application/json"),
        ("PATCH", "/items/7", b'{"name": ' + DEEP + b"}", "application/json"),
        ("POST", "/rpc/shop/create", DEEP, "application/json"),
        ("POST", "/rpc/shop/create", DEEP_MAP, "application/json"),
        ("POST", "/items", PACKED, "application/msgpack"),
        ("PATCH", "/items/7", b"\x81\xa4name" + PACKED, "application/msgpack"),
        ("POST", "/rpc/shop/create", PACKED, "application/msgpack"),
        ("POST", "/rpc/shop/create", b"\x81\xa4item" + PACKED, "application/msgpack"),
        ("GET", "/deep?tags=" + DEEP.decode(), b"", None),
        ("GET", "/deep?one=" + DEEP.decode(), b"", None),
    ],
)
async def test_deep_nesting_is_the_clients_mistake(
    front: Front, lines: io.StringIO, verb: str, path: str, body: bytes, kind: str | None
) -> None:
    """400 with a code, in every place of a request and in both encodings; no traceback anywhere."""

    async def deep(tags: list[list[int]] = [], one: dict[str, int] | None = None) -> int:  # noqa: B006
        return 1

    open_shop(front.node)
    front.node.serve("deep", [RouteRecord("GET", "/deep", "deep", {"tags": "query", "one": "query"})], deep=deep)
    headers = {"Content-Type": kind} if kind else {}
    told: Told = await front.ask(verb, path, data=body or None, headers=headers)
    assert (told.status, told.json["code"]) == (400, "bad_arguments")
    assert "Traceback" not in lines.getvalue()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /hello/x HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /hello/x HTTP/1.7\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /hello/x HTTP/0.9\r\n\r\n", 505),
        (b"GET /hello/x HTTP/3\r\n\r\n", 400),
        (b"GET /hello/x\r\n\r\n", 505),
        (
            b"POST /measure HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST /measure HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST /measure HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /measure HTTP/1.1\r\nHost: localhost\r\nContent-Length : 3\r\n\r\nabc", 400),
        (b"POST /measure HTTP/1.1\r\nHost: localhost\r\nContent-Length: -3\r\n\r\nabc", 400),
        (b"POST /measure HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity, chunked, x\r\n\r\nabc", 400),
        (
            b"POST /measure HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
            400,
        ),
        (b"GET /hello/x HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n  folded\r\n\r\n", 400),
        (b"GET /hello/x HTTP/1.1\nHost: localhost\n\n", 400),
        (b"GET /hello/x HTTP/1.1\r\nHost: localhost\r\nX A: b\r\n\r\n", 400),
        (b"GET /hello/x HTTP/1.1\r\nHost: localhost\r\nX-A: b\x00c\r\n\r\n", 400),
        (b"GET /hello/x HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"b" * 10_000 + b"\r\n\r\n", 431),
        (b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ],
)
async def test_what_two_servers_could_read_differently_is_refused(front: Front, head: bytes, status: int) -> None:
    """Framing that is ambiguous, and other versions: one answer, and the connection ends."""
    open_shop(front.node)
    reader, writer = await front.raw(head)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer[9:12] == b"%d" % status
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"application/problem+json" in answer
    if status == 505:
        assert b"trace id" not in answer  # nothing is hidden: the sentence says what is wrong
    writer.close()


# --- connections --------------------------------------------------------------------------------------


class TestConnections:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        limits = msgspec.structs.replace(
            settings.gateway, max_connections=6, max_connections_per_client=3, header_timeout_s=0.2
        )
        return msgspec.structs.replace(settings, gateway=limits)

    async def test_connections_are_limited_together(self, leaky: Front, node: FakeNode) -> None:
        """The one too many gets an answer and is closed; room that is freed is used again."""
        held = [await leaky.raw() for _ in range(6)]
        reader, _ = await leaky.raw()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in answer
        held[0][1].close()
        await eventually(lambda: len(leaky.server.connections) == 5, "it is closed")
        assert (await leaky.get("/dozes")).status == 200

    async def test_connections_of_one_client_are_limited(self, leaky: Front, monkeypatch: pytest.MonkeyPatch) -> None:
        """Loopback is exempt, so here it counts as a stranger."""
        monkeypatch.setattr("mesh.gateway.clients._is_loopback", lambda address: False)
        held = [await leaky.raw() for _ in range(3)]
        await eventually(lambda: len(leaky.server.connections) == 3, "they are taken")
        reader, _ = await leaky.raw(b"GET /dozes HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        assert len(held) == 3

    async def test_a_head_that_trickles_is_given_up(self, leaky: Front) -> None:
        """From its first byte, whatever comes later; also on a connection that has been used; idle ones stay."""
        idle = await leaky.raw()
        reader, writer = await leaky.raw(b"GET /away HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"}")
        writer.write(b"GET /away HT")
        second, _ = await leaky.raw(b"POST ")
        for each in (reader, second):
            assert (await asyncio.wait_for(each.readline(), 3)).startswith(b"HTTP/1.1 408 ")
        idle[1].write(b"GET /dozes HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await idle[0].readline()).startswith(b"HTTP/1.1 200 ")

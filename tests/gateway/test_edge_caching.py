"""Caching: validators, conditional requests and ranges of complete answers."""

from __future__ import annotations

import email
from typing import Any

import msgspec
import pytest
from gateway_front import Front, Told
from gateway_shop import open_shop

from mesh.calls.http_response import Response, SetCookie
from mesh.config import Settings
from mesh.discovery.record import EdgePolicy, RouteRecord
from mesh.errors import Overloaded
from mesh.gateway.edge.ranges import Part, RangeNotSatisfiable, read_ranges
from mesh.gateway.edge.validators import PreconditionFailed, Validators, range_applies, unchanged

DATA = bytes(range(256)) * 4
MODIFIED = "Mon, 02 Nov 2026 10:00:00 GMT"
EARLIER = "Mon, 02 Nov 2026 09:59:59 GMT"
LATER = "Mon, 02 Nov 2026 10:00:01 GMT"
CACHE = EdgePolicy(cache="public, max-age=60")


@pytest.fixture
def shop(front: Front) -> Front:
    async def data() -> bytes:
        return DATA

    async def big() -> bytes:
        return DATA * 1000

    async def dated() -> Response[bytes]:
        return Response(DATA, headers={"Last-Modified": MODIFIED, "Content-Language": "de", "Vary": "Cookie"})

    async def tagged() -> Response[bytes]:
        return Response(DATA, headers={"ETag": 'W/"own"', "Cache-Control": "private"})

    async def cookie() -> Response[str]:
        return Response("x", cookies=[SetCookie(name="a", value="b")])

    async def part() -> Response[bytes]:
        return Response(b"abc", status=206, headers={"Content-Range": "bytes 0-2/9"})

    async def fails() -> str:
        raise Overloaded("no")

    functions = {
        "data": data, "big": big, "dated": dated, "tagged": tagged, "cookie": cookie, "part": part, "fails": fails,
    }  # fmt: skip
    records = [RouteRecord("GET", f"/{name}", name, produces="image/png", edge=CACHE) for name in functions]
    records += [RouteRecord("POST", "/data", "data", edge=CACHE), RouteRecord("GET", "/plain", "data")]
    front.node.serve("files", records, **functions)
    open_shop(front.node)
    return front


async def get(shop: Front, path: str, verb: str = "GET", **headers: str) -> Told:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await shop.ask(verb, path, headers={"Accept-Encoding": "identity", **sent})


async def test_a_route_opts_in(shop: Front) -> None:
    told = await get(shop, "/data")
    assert told.headers["Cache-Control"] == "public, max-age=60"
    assert told.headers["ETag"].startswith('"')
    assert told.headers["Accept-Ranges"] == "bytes"
    assert told.headers["Vary"] == "Accept"
    assert (await get(shop, "/data")).headers["ETag"] == told.headers["ETag"]
    assert (await get(shop, "/big")).headers["ETag"] != told.headers["ETag"]
    plain = await get(shop, "/plain")
    assert not {"ETag", "Cache-Control", "Accept-Ranges", "Vary"} & set(plain.headers)


async def test_an_answer_keeps_its_own_fields(shop: Front) -> None:
    told = await get(shop, "/tagged")
    assert (told.headers.getall("ETag"), told.headers.getall("Cache-Control")) == (['W/"own"'], ["private"])


async def test_a_cookie_is_for_one_client(shop: Front) -> None:
    """No cache stores it, although the route is public."""
    assert (await get(shop, "/cookie")).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(("verb", "path"), [("POST", "/data"), ("GET", "/part"), ("GET", "/fails")])
async def test_only_complete_answers_to_get_have_validators(shop: Front, verb: str, path: str) -> None:
    told = await get(shop, path, verb, Range="bytes=0-1", If_None_Match="*")
    assert not {"ETag", "Accept-Ranges"} & set(told.headers)
    assert ("Cache-Control" in told.headers) is (path != "/fails")


async def test_a_known_answer_is_not_sent_again(shop: Front) -> None:
    tag = (await get(shop, "/data")).headers["ETag"]
    for value in (tag, f"W/{tag}", f'"other", {tag}', f'"a,b",W/{tag}', "*"):
        for verb in ("GET", "HEAD"):
            told = await get(shop, "/data", verb, If_None_Match=value)
            assert (told.status, told.body) == (304, b"")
            assert told.headers["ETag"] == tag
            assert told.headers["Cache-Control"] == "public, max-age=60"
            assert "Content-Type" not in told.headers
    for value in ('"other"', tag[:-1], tag.strip('"'), ""):
        assert (await get(shop, "/data", If_None_Match=value)).status == 200


async def test_dates(shop: Front) -> None:
    told = await get(shop, "/dated", If_Modified_Since=MODIFIED)
    assert (told.status, told.headers["Last-Modified"], told.headers.getall("Vary")) == (
        304,
        MODIFIED,
        ["Cookie", "Accept"],
    )
    assert "Content-Language" not in told.headers
    assert (await get(shop, "/dated", If_Modified_Since=EARLIER)).status == 200
    # If-None-Match goes before If-Modified-Since.
    assert (await get(shop, "/dated", If_None_Match='"x"', If_Modified_Since=LATER)).status == 200
    assert (await get(shop, "/data", If_Modified_Since=LATER)).status == 200
    assert (await get(shop, "/dated", If_Modified_Since="yesterday")).status == 200


async def test_preconditions(shop: Front) -> None:
    tag = (await get(shop, "/data")).headers["ETag"]
    for headers, status in [
        ({"If_Match": tag}, 200),
        ({"If_Match": "*"}, 200),
        ({"If_Match": '"other"'}, 412),
        ({"If_Match": f"W/{tag}"}, 412),
        ({"If_Match": tag, "If_None_Match": tag}, 304),
        ({"If_Match": '"other"', "If_None_Match": tag}, 412),
    ]:
        assert (await get(shop, "/data", **headers)).status == status
    failed = await get(shop, "/dated", If_Unmodified_Since=EARLIER)
    assert (failed.status, failed.json["code"]) == (412, "precondition_failed")
    assert (await get(shop, "/dated", If_Unmodified_Since=MODIFIED)).status == 200


# --- ranges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "body", "shown"),
    [
        ("bytes=0-0", DATA[:1], "bytes 0-0/1024"),
        ("bytes=10-19", DATA[10:20], "bytes 10-19/1024"),
        ("bytes=1000-", DATA[1000:], "bytes 1000-1023/1024"),
        ("bytes=-24", DATA[1000:], "bytes 1000-1023/1024"),
        ("bytes=-5000", DATA, "bytes 0-1023/1024"),
        ("bytes=1000-99999", DATA[1000:], "bytes 1000-1023/1024"),
        ("BYTES = 0-1", DATA[:2], "bytes 0-1/1024"),
        ("bytes=0-1, 5000-", DATA[:2], "bytes 0-1/1024"),
    ],
)
async def test_one_range(shop: Front, header: str, body: bytes, shown: str) -> None:
    told = await get(shop, "/data", Range=header)
    assert (told.status, told.body, told.headers["Content-Range"]) == (206, body, shown)
    assert (told.headers["Content-Length"], told.kind) == (str(len(body)), "image/png")
    assert told.headers["ETag"] == (await get(shop, "/data")).headers["ETag"]


async def test_several_ranges(shop: Front) -> None:
    told = await get(shop, "/data", Range="bytes=0-1, 10-12, -2")
    assert told.status == 206
    assert "Content-Range" not in told.headers
    message: Any = email.message_from_bytes(f"Content-Type: {told.kind}\r\n\r\n".encode() + told.body)
    parts = message.get_payload()
    assert [(part["Content-Range"], part.get_content_type()) for part in parts] == [
        ("bytes 0-1/1024", "image/png"),
        ("bytes 10-12/1024", "image/png"),
        ("bytes 1022-1023/1024", "image/png"),
    ]
    boundary = told.kind.partition("boundary=")[2].encode()
    bodies = [each.partition(b"\r\n\r\n")[2][:-2] for each in told.body.split(b"--" + boundary)[1:-1]]
    assert bodies == [DATA[:2], DATA[10:13], DATA[-2:]]


@pytest.mark.parametrize(
    "header",
    ["bytes=1024-", "bytes=5000-6000", "bytes=-0", "bytes=0-10,5-20", "bytes=0-,-1", "bytes=" + "0-0," * 8 + "1-1"],
)
async def test_a_range_that_is_refused(shop: Front, header: str) -> None:
    """Beyond the end, overlapping, or too many: one problem, with the length."""
    told = await get(shop, "/data", Range=header)
    assert (told.status, told.json["code"]) == (416, "range_not_satisfiable")
    assert told.headers["Content-Range"] == "bytes */1024"
    assert "Cache-Control" not in told.headers


@pytest.mark.parametrize(
    "header",
    ["lines=0-1", "bytes", "bytes=", "bytes=a-b", "bytes=5-1", "bytes=0-1;x", "bytes=0_1-2", "bytes=" + "9" * 30 + "-"],
)
async def test_a_malformed_range_is_ignored(shop: Front, header: str) -> None:
    assert (await get(shop, "/data", Range=header)).status == 200


async def test_ranges_are_for_get_and_for_the_answer_that_the_client_has(shop: Front) -> None:
    tag = (await get(shop, "/data")).headers["ETag"]
    assert (await get(shop, "/data", "HEAD", Range="bytes=0-1")).status == 200
    assert (await get(shop, "/data", Range="bytes=0-1", If_Range=tag)).status == 206
    for other in ('"other"', f"W/{tag}", MODIFIED, "nonsense"):
        assert (await get(shop, "/data", Range="bytes=0-1", If_Range=other)).status == 200
    assert (await get(shop, "/dated", Range="bytes=0-1", If_Range=MODIFIED)).status == 206
    assert (await get(shop, "/dated", Range="bytes=0-1", If_Range=LATER)).status == 200
    assert (await get(shop, "/data", Range="bytes=0-1", If_None_Match=tag)).status == 304
    assert (await get(shop, "/plain", Range="bytes=0-1")).status == 200


@pytest.mark.parametrize("size", [0, 1, 7])
def test_ranges_are_within_the_body(size: int) -> None:
    """Every pair of numbers is a part of the body, ignored or refused."""
    for first in ("", "0", "1", "6", "7", "99999999999999999999"):
        for last in ("", "0", "1", "6", "7", "99999999999999999"):
            try:
                parts = read_ranges(f"bytes={first}-{last}", size, 8)
            except RangeNotSatisfiable:
                continue
            assert all(isinstance(part, Part) and 0 <= part.start < part.end <= size for part in parts)


def test_many_tags_cost_little() -> None:
    """A header of 8 KiB holds thousands of them, or a long beginning of one."""
    known = Validators('"x"', None)
    assert not unchanged(_headers("If-None-Match", '"a",' * 2000), known)
    assert not unchanged(_headers("If-None-Match", '"' * 8000), known)
    assert not range_applies(_headers("If-Range", " " * 8000), known)
    with pytest.raises(PreconditionFailed):
        unchanged(_headers("If-Match", "W/" * 4000), known)


def _headers(name: str, value: str) -> Any:
    from multidict import CIMultiDict

    return CIMultiDict({name: value})


class TestEveryRoute:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, etag=True))

    async def test_etag_is_for_every_get(self, shop: Front) -> None:
        told = await get(shop, "/plain")
        assert "ETag" in told.headers
        assert "Cache-Control" not in told.headers
        assert (await get(shop, "/plain", If_None_Match=told.headers["ETag"])).status == 304
        for verb in ("GET", "HEAD"):
            assert "ETag" not in (await get(shop, "/count/3", verb)).headers
        other = await get(shop, "/hello/x", Accept="application/msgpack")
        assert other.headers["ETag"] != (await get(shop, "/hello/x")).headers["ETag"]

    async def test_the_document_names_the_answers(self, shop: Front) -> None:
        responses = (await get(shop, "/openapi.json")).json["paths"]["/plain"]["get"]["responses"]
        assert {"206", "304", "412", "416"} <= set(responses)


async def test_it_is_in_the_chain_only_while_a_route_needs_it(front: Front) -> None:
    open_shop(front.node)
    assert not front.gateway._wrapped
    front.node.serve("files", [RouteRecord("GET", "/x", "x", edge=CACHE)], x=_x)
    assert front.gateway._wrapped
    responses = (await get(front, "/openapi.json")).json["paths"]
    assert "304" in responses["/x"]["get"]["responses"]
    assert "304" not in responses["/hello/{name}"]["get"]["responses"]


async def _x() -> str:
    return "x"

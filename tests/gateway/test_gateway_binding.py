"""A request made into a call: types, places, bodies."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import msgspec
import pytest
from gateway_fakes import record_of

from mesh.discovery.record import RouteRecord, Source
from mesh.errors import BadArguments, MeshError, UnsupportedMedia
from mesh.gateway.binding import Binding, RpcBinding
from mesh.protocol.messages import JSON, MSGPACK, RAW


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class User(msgspec.Struct):
    name: str
    age: int = 0


async def sized(width: int, ratio: float = 1.0, crop: bool = False) -> None: ...
async def maybe(n: int | None = None, q: str | None = None, id: int | str = 0) -> None: ...
async def chosen(colour: Colour, side: Literal["left", "right"] = "left", level: Literal[1, 2] = 1) -> None: ...
async def many(tag: list[int], name: list[str] | None = None) -> None: ...
async def filtered(where: dict[str, int]) -> None: ...
async def fields(id: int, name: str, tags: list[str] = []) -> None: ...  # noqa: B006
async def whole(id: int, user: User) -> None: ...
async def image(data: bytes) -> None: ...
async def thumbnail(data: bytes, width: int) -> None: ...


def binding(function: Any, path: str = "/x", verb: str = "GET", **sources: Source) -> Binding:
    return Binding(RouteRecord(verb, path, "m", sources), record_of("m", function))


def bound(binding: Binding, *values: str, query: str = "", body: bytes = b"", kind: Any = "json") -> Any:
    """The arguments as the worker would read them."""
    encoded, encoding = binding.bind(list(values), query, body, kind)
    assert encoding in (JSON, MSGPACK)
    return msgspec.json.decode(encoded) if encoding == JSON else msgspec.msgpack.decode(encoded)


def wrong(binding: Binding, *values: str, **parts: Any) -> str:
    """The place that the error names."""
    with pytest.raises(BadArguments) as caught:
        bound(binding, *values, **parts)
    assert str(caught.value).startswith(caught.value.details["path"])
    return str(caught.value.details["path"])


SIZED = binding(sized, "/x/{width}", width="path", ratio="query", crop="query")


def test_text_becomes_what_the_schema_asks_for() -> None:
    """Path and query are text; the call has numbers and truth values."""
    assert bound(SIZED, "12", query="ratio=1.5&crop=true") == {"width": 12, "ratio": 1.5, "crop": True}
    assert bound(SIZED, "-3", query="crop=0") == {"width": -3, "crop": False}


@pytest.mark.parametrize(
    ("width", "query", "place"),
    [
        ("wide", "", "path.width"),
        ("1.5", "", "path.width"),
        ("9" * 5000, "", "path.width"),
        ("1_000", "", "path.width"),
        ("٣", "", "path.width"),
        ("1", "ratio=big", "query.ratio"),
        ("1", "ratio=nan", "query.ratio"),
        ("1", "ratio=1e400", "query.ratio"),
        ("1", "ratio=-1e999", "query.ratio"),
        ("1", "ratio=", "query.ratio"),
        ("1", "crop=maybe", "query.crop"),
        ("1", "crop=1&crop=0", "query.crop"),
    ],
)
def test_a_wrong_value_is_named_by_its_place(width: str, query: str, place: str) -> None:
    """`details.path` and the sentence say which value of the request is wrong."""
    assert wrong(SIZED, width, query=query) == place


def test_a_missing_value_is_named_and_an_unknown_one_is_left_alone() -> None:
    """Only what has no default is missed; a tracking parameter breaks nothing."""
    needs = binding(sized, width="query", ratio="query")
    assert wrong(needs) == "query.width"
    assert bound(needs, query="width=1&utm_source=mail") == {"width": 1}


def test_unions_take_the_strictest_type_that_fits() -> None:
    """`int | str` is a number when it reads as one; an empty `int | None` is null, an empty `str | None` is a text."""
    maybe_ = binding(maybe, n="query", q="query", id="query")
    assert bound(maybe_, query="n=&q=&id=7") == {"n": None, "q": "", "id": 7}
    assert bound(maybe_, query="n=5&q=null&id=x7") == {"n": 5, "q": "null", "id": "x7"}


def test_choices_are_checked_where_they_come_in() -> None:
    """Enums and Literals, of text and of numbers; the message lists what is allowed."""
    chosen_ = binding(chosen, colour="query", side="query", level="query")
    assert bound(chosen_, query="colour=red&level=2") == {"colour": "red", "level": 2}
    with pytest.raises(BadArguments, match="red"):
        bound(chosen_, query="colour=green")
    assert wrong(chosen_, query="colour=red&level=3") == "query.level"


def test_a_repeated_name_makes_an_array() -> None:
    """`?tag=1&tag=2`, each with its type; one value makes an array of one."""
    many_ = binding(many, tag="query", name="query")
    assert bound(many_, query="tag=1&tag=2&name=a") == {"tag": [1, 2], "name": ["a"]}
    assert wrong(many_, query="tag=1&tag=x") == "query.tag"


def test_structures_in_a_query_are_json() -> None:
    """What has no form as plain text is written as JSON."""
    assert bound(binding(filtered, where="query"), query="where=%7B%22a%22%3A1%7D") == {"where": {"a": 1}}
    assert wrong(binding(filtered, where="query"), query="where=[1]") == "query.where"
    assert wrong(binding(filtered, where="query"), query="where={") == "query.where"


def test_a_query_that_is_not_utf8_or_endless_is_refused() -> None:
    """Neither bytes that are no text nor a million names get further."""
    assert wrong(binding(maybe, q="query"), query="q=%ff") == "query"
    assert wrong(binding(maybe, q="query"), query="q=\udcff") == "query"
    assert wrong(binding(maybe, q="query"), query="a=1&" * 2000) == "query"


FIELDS = binding(fields, "/x/{id}", "POST", id="path", name="field", tags="field")


def test_members_of_the_body_become_arguments() -> None:
    """Beside those of the path; values are passed on as they are written."""
    assert bound(FIELDS, "1", body=b'{"name": "a", "tags": ["x"]}') == {"id": 1, "name": "a", "tags": ["x"]}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "body.name"),
        (b"{}", "body.name"),
        (b'{"nmae": "a"}', "body.nmae"),
        (b'{"name": "a", "id": 5}', "body.id"),
        (b"[1]", "body"),
        (b"{", "body"),
        (b'{"name": "a"} x', "body"),
        (b"\xff\xfe", "body"),
    ],
)
def test_a_wrong_body_is_named_by_the_member(body: bytes, place: str) -> None:
    """Missing, unknown, of the path, not an object, not JSON."""
    assert wrong(FIELDS, "1", body=body) == place


def test_an_unknown_member_comes_with_the_nearest_known_one() -> None:
    """A slip of the finger is mended by reading the error."""
    with pytest.raises(BadArguments, match='"name"'):
        bound(FIELDS, "1", body=b'{"nmae": "a"}')


WHOLE = binding(whole, "/x/{id}", "POST", id="path", user="body")


def test_a_whole_body_is_one_argument() -> None:
    """A structured parameter takes the body as it is."""
    assert bound(WHOLE, "1", body=b'{"name": "a", "age": 3}') == {"id": 1, "user": {"name": "a", "age": 3}}
    assert wrong(WHOLE, "1", body=b" ") == "body"


def test_a_body_cannot_break_out_of_its_argument() -> None:
    """Bytes that are more than one JSON value are refused, not spliced into the call."""
    assert wrong(WHOLE, "1", body=b'{"name": "a"}, "id": 99') == "body"
    assert wrong(WHOLE, "1", body=b'{"name": "a"}}, {') == "body"


def test_bytes_travel_as_they_are() -> None:
    """Alone without any envelope; beside others in MessagePack, never as base64 in JSON."""
    alone = binding(image, verb="POST", data="body")
    assert alone.bind([], "", b"\xff\x00", "other") == (b"\xff\x00", RAW)
    beside = binding(thumbnail, verb="POST", data="body", width="query")
    assert bound(beside, query="width=9", body=b"\xff\x00", kind="other") == {"data": b"\xff\x00", "width": 9}
    assert bound(beside, query="width=9", body=b"", kind="json") == {"data": b"", "width": 9}


def test_a_json_route_refuses_other_types() -> None:
    """415, with what to send instead; MessagePack is as good as JSON."""
    with pytest.raises(UnsupportedMedia, match="application/json"):
        FIELDS.bind(["1"], "", b"name=a", "other")
    assert bound(FIELDS, "1", body=msgspec.msgpack.encode({"name": "a"}), kind="msgpack") == {"id": 1, "name": "a"}
    assert wrong(FIELDS, "1", body=b"\xc1", kind="msgpack") == "body"
    assert wrong(FIELDS, "1", body=msgspec.msgpack.encode({5: 1}), kind="msgpack") == "body.5"


def test_what_the_worker_finds_wrong_is_named_by_its_place_in_the_request() -> None:
    """`$.width` of a call is `query.width` of its request, also deep inside."""
    mixed = binding(thumbnail, "/x", "POST", data="body", width="query")
    assert mixed.place("$.width") == "query.width"
    assert WHOLE.place("$.user.age") == "body.age"
    assert WHOLE.place("$.id") == "path.id"
    assert FIELDS.place("$.tags[2]") == "body.tags[2]"
    assert FIELDS.place("$") == "$"
    assert RpcBinding(record_of("m", sized)).place("$.width") == "body.width"


def test_rpc_passes_json_through_untouched() -> None:
    """Objects and arrays, and nothing at all; anything else is no set of arguments."""
    rpc = RpcBinding(record_of("m", sized))
    for body in (b'{"width": 1}', b" [1, 2]", b"\n{}"):
        assert rpc.bind("", body, "json") == (body, JSON)
    assert rpc.bind("", b" \n", "json") == (b"{}", JSON)
    for body in (b'"x"', b"5", b"name=ujun"):
        with pytest.raises(BadArguments):
            rpc.bind("", body, "json")
    with pytest.raises(UnsupportedMedia):
        rpc.bind("", b"<x/>", "other")


def test_rpc_takes_bytes_for_the_one_parameter_that_is_bytes() -> None:
    """With the other arguments in the query."""
    assert RpcBinding(record_of("m", image)).bind("", b"\xff", "other") == (b"\xff", RAW)
    body, encoding = RpcBinding(record_of("m", thumbnail)).bind("width=4", b"\xff", "other")
    assert (msgspec.msgpack.decode(body), encoding) == ({"width": 4, "data": b"\xff"}, MSGPACK)
    with pytest.raises(MeshError) as caught:
        RpcBinding(record_of("m", thumbnail)).bind("", b"\xff", "other")
    assert caught.value.details == {"path": "query.width"}


def test_an_integer_that_messagepack_has_no_room_for_is_named() -> None:
    """JSON carries any integer; beside bytes, arguments travel as MessagePack, which has 64 bits."""
    beside_bytes = binding(thumbnail, "/x", "POST", data="body", width="query")
    assert wrong(beside_bytes, query=f"width={10**30}", body=b"x") == "query.width"
    assert bound(binding(sized, "/x/{width}", width="path"), str(10**30))["width"] == 10**30


def test_messagepack_that_is_nested_too_deeply_is_no_fault_of_the_gateway() -> None:
    assert (
        wrong(binding(whole, "/x/{id}", "POST", id="path", user="body"), "1", body=b"\x91" * 5000, kind="msgpack")
        == "body"
    )

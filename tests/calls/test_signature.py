"""Arguments and answers: every form on the wire, and what is said when one is wrong."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import timeit
import uuid
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.calls.declared import BadDeclaration
from mesh.calls.results import BadResult
from mesh.calls.signature import Signature, encode_arguments, typed_result
from mesh.errors import BadArguments
from mesh.protocol.messages import JSON, MSGPACK, RAW

pack = msgspec.msgpack.encode


class Color(enum.Enum):
    RED = "red"


class Item(msgspec.Struct):
    price: float
    parent: Item | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Address(TypedDict):
    street: str


async def hello(self: Any, name: str, n: int = 3) -> str: ...


async def count(self: Any, n: int) -> AsyncIterator[int]:
    yield n


async def buy(self: Any, order: list[Item], note: str = "") -> None: ...


async def thumbnail(self: Any, image: bytes, width: int = 200) -> bytes: ...


async def nothing(self: Any): ...  # type: ignore[no-untyped-def]


async def search(self: Any, text: str, /, *, limit: int, tags: list[str] | None = None) -> None: ...


def of(function: Callable[..., Any], label: str = "") -> Signature:
    return Signature(function, label or f"greeting.{function.__name__}")


def refused(signature: Signature, body: bytes, encoding: int = MSGPACK) -> tuple[str, str]:
    with pytest.raises(BadArguments) as caught:
        signature.decode_args(body, encoding)
    return caught.value.message, caught.value.details["path"]


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (pack(["ujun"]), MSGPACK),
        (pack({"name": "ujun"}), MSGPACK),
        (pack({0: "ujun"}), MSGPACK),
        (pack({0: "ujun", "n": 3}), MSGPACK),
        (memoryview(pack(["ujun", 3])), MSGPACK),
        (memoryview(pack({"n": 3, "name": "ujun"})), MSGPACK),
        (b"\xdc\x00\x01" + pack("ujun"), MSGPACK),
        (b'{"name": "ujun"}', JSON),
        (b'  ["ujun", 3]', JSON),
        (b" " * 100 + b'["ujun"]', JSON),
        (memoryview(b'["ujun"]'), JSON),
    ],
)
def test_every_form_of_body_gives_the_same_values(body, encoding):
    """Array, map, mixed map and JSON all become the positional values, with defaults."""
    assert of(hello).decode_args(body, encoding) == ("ujun", 3)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"", MSGPACK), (b"", JSON), (b"", RAW), (b"  ", JSON), (b"\x90", MSGPACK), (b"\x80", MSGPACK), (b"{}", JSON)],
)
def test_an_empty_body_is_a_call_without_arguments(body, encoding):
    """Nothing, and an empty array or map, are the same."""
    assert of(nothing).decode_args(body, encoding) == ()


@pytest.mark.parametrize("encoding", [MSGPACK, JSON])
def test_an_empty_body_misses_what_is_required(encoding):
    """The first missing argument is named."""
    message, path = refused(of(hello), b"", encoding)
    assert ('"name"' in message, path) == (True, "$.name")


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (pack(["x"]), MSGPACK),
        (pack({"n": "x"}), MSGPACK),
        (pack({0: "x"}), MSGPACK),
        (b'["x"]', JSON),
        (b'{"n":"x"}', JSON),
    ],
)
def test_a_wrong_type_is_named_in_every_form(body, encoding):
    """Positions are told as names."""
    message, path = refused(of(count), body, encoding)
    assert path == "$.n"
    assert all(word in message for word in ('"n"', "greeting.count", "int", "str"))


def test_a_wrong_value_deep_inside_is_shown_with_its_whole_path():
    """The path starts at the argument's name, also for positional arguments."""
    message, path = refused(of(buy), pack([[{"price": 1}, {"price": "q"}]]))
    assert path == "$.order[1].price"
    assert all(word in message for word in ('"order"', "greeting.buy", "float", "str", "$.order[1].price"))
    message, path = refused(of(buy), b'{"order": [{}]}', JSON)
    assert (path, "price" in message) == ("$.order[0]", True)


@pytest.mark.parametrize(
    ("body", "encoding", "named", "path"),
    [
        (pack([]), MSGPACK, ['"name"'], "$.name"),
        (pack({"n": 1}), MSGPACK, ['"name"'], "$.name"),
        (pack(["a", 1, 2]), MSGPACK, ["2", "3"], "$[2]"),
        (b'["a", 1, 2]', JSON, ["2"], "$[2]"),
        (pack({0: "", 1: 2, 2: 3}), MSGPACK, ["2", "3"], "$[2]"),
        (pack({"nmae": "a"}), MSGPACK, ['"nmae"', '"name"?'], "$.nmae"),
        (pack({"zzz": "a"}), MSGPACK, ['"zzz"', "name, n"], "$.zzz"),
        (pack({0: "", "n": 1, "name": ""}), MSGPACK, ['"name"'], "$.name"),
        (pack({1: "a"}), MSGPACK, [], "$"),
        (pack({-1: "a"}), MSGPACK, [], "$"),
        (pack(5), MSGPACK, ["int"], "$"),
        (b"5", JSON, ["int"], "$"),
        (b"x", RAW, ["JSON", "MessagePack"], "$"),
        (b"x", 9, ["9"], "$"),
    ],
)
def test_what_is_wrong_is_said(body, encoding, named, path):
    """Missing, surplus, unknown and doubled arguments each have their path; the message has the names."""
    message, found = refused(of(hello), body, encoding)
    assert found == path
    assert all(word in message for word in ("greeting.hello", *named)), message


def test_raw_bytes_go_to_the_single_bytes_parameter():
    """The others take their defaults; the bytes are not copied."""
    image = b"\xff" * 1000
    values = of(thumbnail).decode_args(image, RAW)
    assert values == (image, 200)
    assert values[0] is image
    assert of(thumbnail).decode_args(memoryview(image), RAW) == (image, 200)
    assert of(thumbnail).decode_args(b"", RAW) == (b"", 200)


def test_constraints_hold_for_raw_bytes_too():
    """A constrained bytes parameter goes through its checks."""

    async def store(self: Any, data: Annotated[bytes, msgspec.Meta(max_length=2)]) -> None: ...

    assert of(store).decode_args(b"ab", RAW) == (b"ab",)
    assert refused(of(store), b"abc", RAW)[1] == "$.data"


def test_keyword_only_and_positional_only_parameters_are_understood():
    """An array fills the positional ones only; names reach all; the function gets each in its place."""
    signature = of(search)
    assert signature.decode_args(pack({0: "a", "limit": 2}), MSGPACK) == ("a", 2, None)
    assert signature.decode_args(b'{"text": "a", "limit": 2, "tags": ["x"]}', JSON) == ("a", 2, ["x"])
    assert refused(signature, pack(["a"]))[1] == "$.limit"
    assert refused(signature, pack(["a", 3]))[1] == "$[1]"
    assert refused(signature, b'["a", 3]', JSON)[1] == "$[1]"
    seen = []
    run = signature.by_position(lambda *args, **kwargs: seen.append((args, kwargs)))
    run("a", 2, None)
    assert seen == [(("a",), {"limit": 2, "tags": None})]
    assert of(hello).by_position(run) is run


def test_unannotated_parameters_take_anything():
    """Without an annotation the value comes as it was sent."""

    async def echo(self, value, more=None): ...  # type: ignore[no-untyped-def]

    assert of(echo).decode_args(pack([{"a": [1]}]), MSGPACK) == ({"a": [1]}, None)
    assert of(echo).params_schema["required"] == ["value"]


def test_rich_types_arrive_typed_from_both_encodings():
    """Structs, dataclasses, TypedDicts, dates, ids, enums and decimals need no code of the service's."""

    async def everything(
        self: Any, a: Item, b: Point, c: Address, d: dt.datetime, e: uuid.UUID, f: Color, g: Decimal, h: int | None
    ) -> None: ...

    moment = dt.datetime(2024, 5, 1, tzinfo=dt.UTC)
    values = (
        Item(1.0, Item(2.0)), Point(1), {"street": "x"}, moment, uuid.UUID(int=5), Color.RED, Decimal("1.10"), None,
    )  # fmt: skip
    signature = of(everything)
    assert signature.decode_args(encode_arguments(values, {}), MSGPACK) == values
    assert signature.decode_args(msgspec.json.encode(values), JSON) == values


def test_defaults_that_are_mutable_are_those_of_the_function():
    """A default that no schema can show is still handed out."""
    marker = object()

    async def odd(self: Any, a: Any = marker, b: Any = [1], c: Item = Item(1.0)) -> None: ...  # noqa: B006, B008

    values = of(odd).decode_args(b"", MSGPACK)
    assert values == (marker, [1], Item(1.0))


def test_schemas_stand_alone():
    """One object with a property per parameter, closed, with its own definitions."""
    schema = of(buy).params_schema
    assert list(schema["properties"]) == ["order", "note"]
    assert schema["properties"]["order"] == {"type": "array", "items": {"$ref": "#/$defs/Item"}}
    assert schema["$defs"]["Item"]["type"] == "object"
    assert schema["required"] == ["order"]
    assert schema["additionalProperties"] is False
    assert "title" not in schema
    assert of(count).returns_schema == {"type": "integer"}
    assert of(thumbnail).returns_schema["contentMediaType"] == "application/octet-stream"
    assert of(buy).returns_schema == {"type": "null"}
    json.dumps(schema)


def test_kind_of_function_is_told():
    """Calls, streams and plain functions are told apart; a stream's type is that of its items."""

    def plain(self: Any) -> int: ...

    assert (of(hello).stream, of(hello).asynchronous, of(hello).returns) == (False, True, str)
    assert (of(count).stream, of(count).asynchronous, of(count).returns) == (True, False, int)
    assert (of(plain).stream, of(plain).asynchronous) == (False, False)
    assert of(thumbnail).binary
    assert typed_result(count) is int
    assert typed_result(nothing) is Any


def _refusable() -> dict[str, Callable[..., Any]]:
    class Opaque: ...

    async def star(self: Any, *items: int) -> None: ...
    async def stars(self: Any, **items: int) -> None: ...
    async def opaque(self: Any, thing: Any) -> None: ...

    opaque.__annotations__["thing"] = Opaque

    async def result(self: Any) -> None: ...

    result.__annotations__["return"] = Opaque

    async def unresolved(self: Any, thing: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    async def fake_stream(self: Any) -> AsyncIterator[int]: ...

    async def mute_stream(self: Any) -> int:  # type: ignore[misc]
        yield 1

    def generator(self: Any) -> Any:
        yield 1

    async def selfless() -> None: ...

    return {
        "*items": star,
        "**items": stars,
        '"thing"': opaque,
        "returns": result,
        "'Missing'": unresolved,
        "`yield`": fake_stream,
        "AsyncIterator": mute_stream,
        "`async def`": generator,
        "self": selfless,
    }


@pytest.mark.parametrize(("word", "function"), _refusable().items())
def test_what_cannot_travel_is_refused_at_declaration(word, function):
    """Long before the first call, with the method's name."""
    with pytest.raises(BadDeclaration) as caught:
        Signature(function, "greeting.method")
    assert word in caught.value.message
    assert "greeting.method" in caught.value.message


def test_a_method_named_like_a_type_does_not_hide_it():
    """Annotations look into the class only for names that the module lacks."""

    class Shelf:
        class Book(msgspec.Struct):
            title: str

        async def list(self) -> list[int]: ...  # type: ignore[valid-type]

        async def add(self, book: Book) -> None: ...

    assert Signature(Shelf.list, "shelf.list", owner=Shelf).returns == list[int]
    assert Signature(Shelf.add, "shelf.add", owner=Shelf).parameters[0].type is Shelf.Book


HOSTILE = [
    (b"\x91" * 100_000, MSGPACK),
    (b"\x81\xa1n" * 50_000, MSGPACK),
    (b"\xdd\xff\xff\xff\xff", MSGPACK),
    (b"\xdf\xff\xff\xff\xff\x00", MSGPACK),
    (b"\x91\xc1", MSGPACK),
    (b"\x91\x81\x80\x01", MSGPACK),
    (b"\x91\xa1\xff", MSGPACK),
    (b"\xc1", MSGPACK),
    (b"[" * 100_000, JSON),
    (b'{"value":' * 50_000, JSON),
    (b'{"value":"\xff"}', JSON),
    (b'{"value":1} x', JSON),
    (b"{", JSON),
    (pack({"x" * 1_000_000: 1}), MSGPACK),
    (pack({"a - at `$.b": 1}), MSGPACK),
]


@pytest.mark.parametrize(("body", "encoding"), HOSTILE)
def test_a_hostile_body_is_a_bad_argument_and_nothing_else(body, encoding):
    """Depth, false lengths, broken text: one kind of error, and a short one."""

    async def echo(self: Any, value: Any) -> None: ...

    for signature in (of(echo), of(search), of(buy)):
        message, path = refused(signature, body, encoding)
        assert len(message) <= 400
        assert len(path) <= 200


@settings(deadline=None)
@given(st.binary(max_size=60), st.sampled_from([MSGPACK, JSON, RAW, 7]))
def test_random_bodies_raise_bad_arguments_only(body, encoding):
    """Whatever comes, values or BadArguments come out."""
    for signature in FUZZED:
        try:
            assert isinstance(signature.decode_args(body, encoding), tuple)
        except BadArguments as exc:
            path = exc.details["path"]
            assert path[:1] == "$"


FUZZED = [of(hello), of(buy), of(thumbnail), of(search), of(nothing)]


def test_a_check_of_the_types_own_that_raises_is_a_bad_argument():
    """Code that runs while decoding cannot make the server fail."""

    async def draw(self: Any, shape: Picky) -> None: ...

    assert refused(of(draw), pack([{}]))[0].startswith("the arguments of greeting.draw cannot be read: KeyError")


class Picky(msgspec.Struct):
    def __post_init__(self) -> None:
        raise KeyError("no")


def test_results_travel_in_the_encoding_asked_for_and_bytes_as_they_are():
    """MessagePack to peers, JSON to who speaks JSON or sent raw bytes, RAW for bytes."""
    signature = of(thumbnail)
    blob = bytearray(b"ab")
    assert signature.encode_result({"a": 1}, MSGPACK) == (pack({"a": 1}), MSGPACK)
    assert signature.encode_result({"a": 1}, JSON) == (b'{"a":1}', JSON)
    assert signature.encode_result({"a": 1}, RAW) == (b'{"a":1}', JSON)
    assert signature.encode_result(b"ab", JSON) == (b"ab", RAW)
    assert signature.encode_result(blob, MSGPACK)[0] is blob
    assert signature.encode_result(memoryview(b"abcd")[::2], MSGPACK) == (b"ac", RAW)


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [object(), 1j, 2**70, {1: object()}, _endless(), {(1,): 2, "x": 1j}])
def test_a_result_that_cannot_be_sent_names_method_and_type(value):
    """A handler's slip comes back as its own error."""
    with pytest.raises(BadResult) as caught:
        of(hello).encode_result(value, MSGPACK)
    assert "greeting.hello" in caught.value.message
    assert type(value).__qualname__ in caught.value.message
    assert caught.value.status == 500


def test_arguments_are_encoded_as_they_were_given():
    """Nothing, an array, a map of names, or a map of both."""
    decode = msgspec.msgpack.decode
    assert encode_arguments((), {}) == b""
    assert decode(encode_arguments((1, "a"), {})) == [1, "a"]
    assert decode(encode_arguments((), {"n": 1})) == {"n": 1}
    assert decode(encode_arguments((1,), {"n": 2})) == {0: 1, "n": 2}
    assert of(hello).decode_args(encode_arguments(("a",), {"n": 2}), MSGPACK) == ("a", 2)


@pytest.mark.parametrize(
    ("args", "kwargs", "named", "path"),
    [
        ((1, object()), {}, ["argument 2", "object"], "$[1]"),
        ((), {"who": 1j}, ['argument "who"', "complex"], "$.who"),
        ((2**70,), {"n": 1}, ["argument 1", "int"], "$[0]"),
        ((_endless(),), {}, ["argument 1", "list"], "$[0]"),
    ],
)
def test_an_argument_that_cannot_be_sent_fails_where_the_call_is_made(args, kwargs, named, path):
    """The caller learns which one, before anything leaves."""
    with pytest.raises(BadArguments) as caught:
        encode_arguments(args, kwargs, "greeting.hello")
    assert all(word in caught.value.message for word in ("greeting.hello", *named))
    assert caught.value.details["path"] == path


def test_the_common_path_is_cheap():
    """A positional MessagePack body costs well under a microsecond; ten times that here, for busy machines."""
    decode, body = of(hello).decode_args, pack(["ujun", 3])
    best = min(timeit.repeat(lambda: decode(body, MSGPACK), number=2000, repeat=5)) / 2000
    assert best < 10e-6

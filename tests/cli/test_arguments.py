"""Words of a command line become the arguments that were meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from mesh.cli import arguments
from mesh.cli.arguments import Span, pairs, read, value
from mesh.protocol.messages import JSON, MSGPACK

PARAMS = {
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "body": {"type": "string", "contentEncoding": "base64"},
        "colour": {"enum": ["1", "2"]},
    }
}


@pytest.mark.parametrize(
    ("words", "positional", "named"),
    [
        (["ujun"], ["ujun"], {}),
        (["name=ujun"], [], {"name": "ujun"}),
        (["1", "2.5", "true", "null", '["a"]', '{"a": 1}'], [1, 2.5, True, None, ["a"], {"a": 1}], {}),
        (["a=", "b=x=y"], [], {"a": "", "b": "x=y"}),
        (['"a=b"'], ["a=b"], {}),
        (["http://x?a=b"], ["http://x?a=b"], {}),
        (["@@ujun"], ["@ujun"], {}),
    ],
)
def test_without_a_schema_json_is_json_and_the_rest_text(words: list[str], positional: list[Any], named: Any):
    """What looks like a number is one, until the method says otherwise."""
    assert read(words) == (positional, named)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("name=123", "123"),
        ("name=null", "null"),
        ('name="quoted"', "quoted"),
        ("count=123", 123),
        ("maybe=null", None),
        ("maybe=12", "12"),
        ("either=12", 12),
        ("either=1.5", "1.5"),
        ("body=raw", b"raw"),
        ("colour=1", "1"),
        ("unknown=1", 1),
    ],
)
def test_the_schema_decides_what_a_word_means(word: str, wanted: Any):
    """A person called 123 is greeted as text; an optional one may still be null."""
    assert read([word], PARAMS)[1][word.partition("=")[0]] == wanted


def test_positions_use_the_schema_of_their_place():
    """The first word is the first parameter."""
    assert read(["7", "7"], PARAMS) == (["7", 7], {})


def test_a_file_gives_its_content(tmp_path: Path):
    """Bytes where bytes are wanted, text or JSON elsewhere."""
    (tmp_path / "data").write_bytes(b'{"a": 1}')
    assert value(f"@{tmp_path}/data", PARAMS["properties"]["body"]) == b'{"a": 1}'
    assert value(f"@{tmp_path}/data") == {"a": 1}
    assert value(f"@{tmp_path}/data", PARAMS["properties"]["name"]) == '{"a": 1}'


def test_mistakes_are_told_as_usage(tmp_path: Path):
    """A name given twice, and a file that is not there."""
    with pytest.raises(click.UsageError, match="name"):
        read(["name=a", "name=b"])
    with pytest.raises(click.UsageError, match="nowhere"):
        value(f"@{tmp_path}/nowhere")
    with pytest.raises(click.UsageError, match="NAME=VALUE"):
        pairs(["tenant"], "--meta")


@pytest.mark.parametrize(("text", "seconds"), [("2", 2.0), ("0.5", 0.5), ("250ms", 0.25), ("1m", 60.0)])
def test_a_span_is_seconds_or_has_a_unit(text: str, seconds: float):
    """On a command line nobody wants to type the s."""
    assert Span().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "1.2.3"])
def test_a_wrong_span_is_refused(text: str):
    """Nothing, and less than nothing, are no spans either."""
    with pytest.raises(click.BadParameter, match="250ms"):
        Span().convert(text, None, None)


PRICED: dict[str, Any] = {"properties": {"id": {}, "price": {}}}


def test_numbers_keep_their_digits() -> None:
    """A number that a float cannot hold travels as JSON, as it was written; all others as before."""
    price = "1234567890123456789.01"
    positional, named = arguments.read([f'{{"price": {price}, "photo": [0.5]}}'])
    body, encoding = arguments.encode(positional, named, None, "shop.charge")
    assert (body, encoding) == (b'[{"price":1234567890123456789.01,"photo":[0.5]}]', JSON)
    positional, named = arguments.read(["x", f"price={price}"], PRICED)
    assert arguments.encode(positional, named, PRICED, "shop.charge")[0] == b'{"id":"x","price":1234567890123456789.01}'
    assert arguments.encode([10**30], {}, None, "shop.charge") == (b"[1" + b"0" * 30 + b"]", JSON)
    assert arguments.encode([0.1], {}, None, "shop.charge")[1] == MSGPACK

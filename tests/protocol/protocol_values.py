"""Hypothesis strategies for messages, drawn from the grammar itself, and what is legal, said a second time.

`is_legal` is written the slow and plain way, so that it can hold the codec's tables to account.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from mesh.protocol.messages import CALL, ENCODINGS, ERROR, EVENT, GRAMMAR, ITEM, OPEN, REFUSED, REPLY

#: Position of the encoding in the messages that have one. Written here again on purpose.
ENCODING = {CALL: 5, OPEN: 6, REPLY: 3, ITEM: 3, EVENT: 6}
ERROR_TEXTS = ("code", "message", "type")

ints = st.integers(-(2**63), 2**64 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
bodies = st.binary(max_size=40)
metas = st.dictionaries(texts, texts, max_size=3)
# NaN is no different in Python and breaks comparing what came with what was sent.
scalars = st.none() | st.booleans() | ints | st.floats(allow_nan=False) | texts | bodies
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(-5, 5), inner, max_size=4),
    max_leaves=8,
)
error_maps = st.fixed_dictionaries(
    {"code": texts, "message": texts, "type": texts},
    optional={"status": ints, "retry": st.booleans(), "details": st.dictionaries(texts, values, max_size=3)},
)


def _field(kind: int, position: int, types: Any) -> st.SearchStrategy[Any]:
    if ENCODING.get(kind) == position:
        return st.integers(0, len(ENCODINGS) - 1)
    if types is dict:
        return error_maps
    choices = {int: ints, str: texts, bytes: bodies, dict: metas, bool: st.booleans(), type(None): st.none()}
    if types == (bytes, int):
        return bodies  # a body; the codec decides how it travels
    if types is list:
        return st.lists(values, max_size=3)
    if isinstance(types, tuple):
        return st.one_of(*(choices[one] for one in types))
    return choices[types]


def messages(kind: int) -> st.SearchStrategy[list[Any]]:
    """Legal messages of one kind, with any number of the optional fields."""
    _, required, fields = GRAMMAR[kind]
    every = [_field(kind, position, types) for position, types in enumerate(fields, start=1)]
    return st.integers(required, len(fields)).flatmap(lambda count: st.tuples(st.just(kind), *every[:count]).map(list))


any_message = st.sampled_from(sorted(GRAMMAR)).flatmap(messages)

#: Arrays that are messages, or nearly: a kind that exists, and fields that are whatever they are.
near_message = st.tuples(
    st.sampled_from(sorted(GRAMMAR)) | values, st.lists(ints | texts | bodies | st.none() | values, max_size=9)
).map(lambda parts: [parts[0], *parts[1]])


def is_legal(message: Any) -> bool:
    """Whether a message with its body in place is what the grammar allows."""
    if type(message) is not list or not message or type(message[0]) is not int or message[0] not in GRAMMAR:
        return False
    kind = message[0]
    _, required, fields = GRAMMAR[kind]
    if not required <= len(message) - 1 <= len(fields):
        return False
    for position, (value, types) in enumerate(zip(message[1:], fields, strict=False), start=1):
        if types == (bytes, int):
            if type(value) is not bytes:
                return False
            continue
        if type(value) not in (types if isinstance(types, tuple) else (types,)):
            return False
        if ENCODING.get(kind) == position and not 0 <= value < len(ENCODINGS):
            return False
        if type(value) is dict and not _is_legal_map(kind, value):
            return False
    return True


def _is_legal_map(kind: int, value: dict[Any, Any]) -> bool:
    if any(type(key) is not str for key in value):
        return False
    if kind in (ERROR, REFUSED):
        return all(type(value[key]) is str for key in ERROR_TEXTS if key in value)
    return all(type(entry) is str for entry in value.values())

"""Checks that an answer matches the handler's return annotation.

Owns: the check, compiled once for each method, and its error messages.
Leaves to others: encoding (signature), whether answers are checked (service.describe).

An exact `int` for `-> int` costs one comparison. A small answer of another type is decoded as a typed caller would
decode it, which takes about 0.1 µs. In a large answer the items are checked, but not the fields of each Struct.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Final

import msgspec

from mesh.calls.http_response import Response
from mesh.errors import ServiceError
from mesh.protocol.messages import JSON, RAW

#: Types for which comparing the type is a sufficient check. (Not bytes: they have an encoding of their own, RAW.)
EXACT: Final = (int, str, float, bool, type(None))
#: The largest answer, in bytes, that is always checked by decoding it: decoding a large list of Structs takes five
#: times as long as encoding it.
SMALL: Final = 4096

#: (value, body, encoding) -> None; raises BadResult.
Check = Callable[[Any, Any, int], None]


class BadResult(ServiceError):
    """A handler returned a value that cannot be encoded, or that does not match its annotation."""

    code = "bad_result"


def exact_type(hint: Any) -> Any:
    """The type of values that match `hint` without a further check; a type without values when there is none."""
    if hint is None:
        return type(None)
    return hint if hint in EXACT else _Never


def checker(label: str, hint: Any) -> Check:
    """The check of answers of the type `hint`; `label` names the method in errors.

    The check raises BadResult, also for NaN and infinities in JSON, which cannot express them.
    """
    if hint is Any:
        return _check_nothing(label)
    packed = msgspec.msgpack.Decoder(hint).decode
    text = msgspec.json.Decoder(hint).decode

    def check(value: Any, body: Any, encoding: int) -> None:
        try:
            if encoding == RAW:
                # RAW bytes match only an annotation that promises bytes.
                msgspec.convert(bytes(value), hint)
                return
            if encoding == JSON and b"null" in body:
                _refuse_what_is_not_finite(label, value)
            if len(body) > SMALL:
                try:
                    msgspec.convert(value, hint)
                    return
                except Exception:
                    pass  # the encoded form decides
            text(body) if encoding == JSON else packed(body)
        except BadResult:
            raise
        # The validation of a type may raise anything.
        except Exception as exc:
            raise _unlike(label, value, hint, exc) from None

    return check


def cannot_be_sent(label: str, value: Any, exc: Exception) -> BadResult:
    """The error for an answer that cannot be encoded."""
    if awaited := _awaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # otherwise Python would log a second, less helpful warning
        return BadResult(
            f"{label} returned {awaited}, not its result: forgot await?", details={"got": type(value).__name__}
        )
    if isinstance(value, Response):
        return BadResult(
            f"{label} returned an http.Response, which its annotation does not declare: annotate it "
            "-> http.Response[T], where T is the type of the body",
            details={"got": "Response"},
        )
    reason = str(exc) if isinstance(exc, TypeError) else f"{type(exc).__name__}: {exc}"
    return BadResult(
        f"{label} returned a value of type {type(value).__qualname__}, which cannot be sent: {reason[:200]}. "
        "Return plain values, msgspec Structs, dataclasses or bytes.",
        details={"got": type(value).__name__},
    )


def _unlike(label: str, value: Any, hint: Any, exc: Exception) -> BadResult:
    expected, got = shown(hint), type(value).__qualname__
    what, _, where = str(exc).rpartition(" - at ")
    path = where.strip("`") if what else "$"
    reason = (what or where).replace("`", "")[:200]
    inside = f" ({reason} at {path[:100]})" if path != "$" else "" if reason.startswith("Expected") else f" ({reason})"
    return BadResult(
        f"{label} returned a value of type {got}, its annotation is {expected}{inside}",
        details={"expected": expected, "got": got, "path": path[:100]},
    )


def shown(hint: Any) -> str:
    """A type as it is written in source code."""
    if hint is None or hint is type(None):
        return "None"
    if isinstance(hint, type) and not getattr(hint, "__args__", None):
        return hint.__qualname__
    return str(hint).replace("typing.", "")


def _check_nothing(label: str) -> Check:
    def check(value: Any, body: Any, encoding: int) -> None:
        if encoding == JSON and b"null" in body:
            _refuse_what_is_not_finite(label, value)

    return check


def _refuse_what_is_not_finite(label: str, value: Any) -> None:
    """Raise BadResult for NaN and infinities: in JSON they would become null, and the reader could not tell."""
    found = find_not_finite(value)
    if found is not None:
        number, path = found
        raise BadResult(
            f"{label} returned {number!r} (at {path}), which JSON cannot represent: return None instead",
            details={"got": repr(number), "path": path},
        )


def find_not_finite(value: Any, path: str = "$") -> tuple[float, str] | None:
    """The first NaN or infinity within a value, and its path; None when there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (value, path)
    if isinstance(value, str | bytes | int) or value is None:
        return None
    items: Any = ()
    if isinstance(value, dict):
        items = ((f"{path}.{key}", each) for key, each in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        items = ((f"{path}[{number}]", each) for number, each in enumerate(value))
    elif isinstance(value, msgspec.Struct):
        items = ((f"{path}.{name}", getattr(value, name, None)) for name in value.__struct_fields__)
    elif hasattr(value, "__dataclass_fields__"):
        items = ((f"{path}.{name}", getattr(value, name, None)) for name in value.__dataclass_fields__)
    for inner, each in items:
        if (found := find_not_finite(each, inner)) is not None:
            return found
    return None


def _awaitable(value: Any, deep: int = 2) -> str:
    """Describe an object that was not awaited; "" when there is none. Collections are searched `deep` levels down."""
    if inspect.iscoroutine(value):
        return f"the coroutine {value.__qualname__}()"
    if inspect.isasyncgen(value) or hasattr(value, "__anext__"):
        return f"a stream ({type(value).__name__})"
    if inspect.isawaitable(value):
        return f"a {type(value).__name__}"
    if isinstance(value, dict):
        value = list(value.values())
    if deep and isinstance(value, list | tuple | set):
        return next((found for each in value if (found := _awaitable(each, deep - 1))), "")
    return ""


class _Never:
    """A type without values."""

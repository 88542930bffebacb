"""Translates an exception of a handler into an error for its caller, and decides whether to log it.

Owns: which errors of nested calls pass through a handler, the text of exception groups, where an exception was raised.
Leaves to others: sending the error and writing the log line (handling, events.inbox, tasks.runner).

Which errors pass, and which become the handler's own failure: docs/service.md, "Errors of nested calls".
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from copy import copy
from itertools import islice
from types import CodeType
from typing import Any, Final, NamedTuple

from mesh.calls.inbound import BadItem
from mesh.errors import (
    BadReply,
    BadRequest,
    Cancelled,
    Conflict,
    MeshError,
    ProtocolViolation,
    RemoteError,
    SetupError,
    UnknownJob,
)

#: How many exceptions of a group a message names; the others are counted.
MOST_LEAVES: Final = 5
#: How many causes (`raise … from …`) a message names.
MOST_CAUSES: Final = 2

#: Errors of a wrong request, or of a peer that violated the protocol. When a call made by a handler ends with one, the
#: handler's own caller cannot correct it.
_OF_THE_CALLER: Final = (BadRequest, BadReply, ProtocolViolation, Cancelled, SetupError)
#: Among them, the errors that concern data and not the form of the request.
_OF_THE_DATA: Final = (Conflict, UnknownJob, BadItem)
#: Codes of further such errors, which arrive from the wire as RemoteError.
_CODES: Final = frozenset({"bad_result", "bad_topic", "bad_declaration", "setup_error", "config_error"})
#: This module raises again what a handler raised in a child process, where `failure_of` has been applied already.
_FROM_CHILDREN: Final = "mesh.calls.offload"


class Failure(NamedTuple):
    """The error that the caller gets for a handler's exception, and whether to log it.

    Attributes:
        unexpected: a failure of the code in this process, which no other process has logged.
    """

    error: MeshError
    unexpected: bool


def failure_of(exc: BaseException, target: str) -> Failure:
    """The failure for an exception of a handler.

    Args:
        target: "service.method" of the handler, for the message.
    """
    exc = reduced(exc)
    unexpected = True
    if isinstance(exc, asyncio.CancelledError):
        error: MeshError = RemoteError(
            f"{target}: something that the handler awaited was cancelled, but the call was not",
            type_name="CancelledError",
        )
    elif not isinstance(exc, MeshError):
        error = RemoteError(text_of(exc), type_name=type(exc).__name__, details=exit_details(exc))
    elif is_own_fault(exc):
        error = RemoteError(
            f"{target}: a request that the handler made failed ({exc.code}): {exc.message}",
            type_name=exc.type_name,
            details={"nested": exc.code},
        )
        # The other process has logged its bad result with file and line.
        unexpected = not (exc.from_call and exc.code == "bad_result")
    else:
        return Failure(exc, exc.status == 500 and not exc.from_call)
    error.__cause__ = exc
    return Failure(error, unexpected)


def is_own_fault(error: MeshError) -> bool:
    """Whether the error reports a wrong request that the handler made, and so is a failure of the handler.

    The same error raised by the handler itself concerns the request that it answers, and passes to the caller.
    """
    if not isinstance(error, _OF_THE_CALLER) and error.code not in _CODES:
        return False
    if isinstance(error, _OF_THE_DATA) or error.from_call:
        return error.from_call and not isinstance(error, _OF_THE_DATA)
    # A bad result found in this process is reported as this handler's failure already.
    return error.code != "bad_result" and _raised_in_mesh(error)


def reduced(exc: BaseException) -> BaseException:
    """Reduce a group of one exception to that exception, and a group of mesh errors of one code to one such error.

    Anything else is returned unchanged.
    """
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    leaves = list(islice(leaves_of(exc), 100))
    if len(leaves) == 1:
        return leaves[0]
    first = leaves[0]
    if not isinstance(first, MeshError) or any(getattr(leaf, "code", None) != first.code for leaf in leaves):
        return exc
    message = _listed([_message(leaf) for leaf in leaves])
    if is_own_fault(first):
        # Keep the class, so that `failure_of` still recognizes it.
        merged: MeshError = copy(first).with_traceback(first.__traceback__)
        merged.args = (message,)
        return merged
    merged = RemoteError(
        message,
        type_name=first.type_name,
        code=first.code,
        status=first.status,
        retryable=first.retryable,
        details=first.details,
    )
    merged.from_call = first.from_call
    merged.__cause__ = exc
    return merged


def leaves_of(exc: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, at any depth; the exception itself when it is not a group."""
    if not isinstance(exc, BaseExceptionGroup):
        yield exc
        return
    for each in exc.exceptions:
        yield from leaves_of(each)


def text_of(exc: BaseException) -> str:
    """The exception's message, with the members of a group, or with the causes (`raise … from …`).

    An exception's `__str__` may raise; then the text names the exception that it raised.
    """
    if isinstance(exc, BaseExceptionGroup):
        return f"{exc.message}: {_listed([_named(leaf) for leaf in islice(leaves_of(exc), 100)])}"
    text = _message(exc)
    cause = exc.__cause__
    for _ in range(MOST_CAUSES):
        if cause is None or isinstance(exc, MeshError):
            break
        text += f" (from {_named(cause)})"
        cause = cause.__cause__
    return text


def exit_details(exc: BaseException) -> dict[str, Any] | None:
    """Details for the caller: the exit code of a SystemExit. None for other exceptions."""
    if not isinstance(exc, SystemExit):
        return None
    return {"exception": "SystemExit", "exit_code": exc.code if isinstance(exc.code, int | None) else text_of(exc)}


def location(exc: BaseException, run: Callable[..., Any] | None = None) -> str:
    """ "/srv/shop/orders.py:41": the innermost line of the traceback outside of mesh and asyncio.

    Args:
        run: the handler; its definition is the location of an exception without such a line.
    """
    found = _innermost(next(leaves_of(exc))) or _innermost(exc)
    if not found and exc.__cause__ is not None:
        # `offload` replaces an exception that a future cannot hold: the original one is the cause.
        found = _innermost(exc.__cause__)
    return found or (defined_at(run) if run is not None else "")


def _innermost(exc: BaseException) -> str:
    found = ""
    trace = exc.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if not _is_of(frame.f_globals.get("__name__"), ("mesh", "asyncio", "concurrent", "contextlib")):
            found = f"{frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def defined_at(function: Any) -> str:
    """ "/srv/shop/orders.py:38": where a function is defined; "" for an object without source."""
    try:
        code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)
    except ValueError:
        return ""
    return f"{code.co_filename}:{code.co_firstlineno}" if isinstance(code, CodeType) else ""


def _listed(texts: list[str]) -> str:
    more = len(texts) - MOST_LEAVES
    return "; ".join(texts[:MOST_LEAVES]) + (f"; and {more} more" if more > 0 else "")


def _named(exc: BaseException) -> str:
    name = exc.type_name if isinstance(exc, MeshError) else type(exc).__name__
    text = _message(exc)
    return f"{name}: {text}" if text else name


def _message(exc: BaseException) -> str:
    try:
        return exc.message if isinstance(exc, MeshError) else str(exc)
    # The exception's `__str__` may raise anything, even SystemExit.
    except BaseException as own:
        return f"(its message cannot be shown: {type(own).__name__})"


def _raised_in_mesh(error: BaseException) -> bool:
    """Whether mesh itself raised the error, and not the user's code."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__")
    return _is_of(module, ("mesh",)) and module != _FROM_CHILDREN


def _is_of(module: Any, packages: tuple[str, ...]) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in packages

"""What an exception of a handler means: to its caller, and to the log.

Owns: which errors of nested calls pass through a handler, the text of exception groups, where an exception was raised.
Leaves to others: sending the error (handling, events.inbox, tasks.runner), and writing the line.

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

#: Exceptions of a group that are named; the others are counted.
MOST_LEAVES: Final = 5
#: Causes (`raise … from …`) that are named.
MOST_CAUSES: Final = 2

#: Errors that say that a request was made wrongly, or that a peer broke its promise. When a handler meets one in a call
#: that it makes, its own caller cannot put it right.
_OF_THE_CALLER: Final = (BadRequest, BadReply, ProtocolViolation, Cancelled, SetupError)
#: Among them, those that speak of data and not of how the request was made.
_OF_THE_DATA: Final = (Conflict, UnknownJob)
#: Codes of the same kind whose classes do not come back from the wire.
_CODES: Final = frozenset({"bad_result", "bad_topic", "bad_declaration", "setup_error", "config_error"})
#: It raises again what a handler raised in a child process, where the same was asked already.
_FROM_CHILDREN: Final = "mesh.calls.offload"


class Failure(NamedTuple):
    """What a handler raised, as its caller is told, and whether the log must tell of it.

    Attributes:
        unexpected: a failure of the code that runs here, which no other process has logged.
    """

    error: MeshError
    unexpected: bool


def failure_of(exc: BaseException, target: str) -> Failure:
    """What an exception of a handler means.

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
        # The other process has logged its bad result, with its own file and line.
        unexpected = not (exc.from_call and exc.code == "bad_result")
    else:
        return Failure(exc, exc.status == 500 and not exc.from_call)
    error.__cause__ = exc
    return Failure(error, unexpected)


def is_own_fault(error: MeshError) -> bool:
    """Whether the error tells of a request that the handler made wrongly, so that it is the handler's failure.

    The same error raised by the handler itself is a statement about the request that it answers, and passes.
    """
    if not isinstance(error, _OF_THE_CALLER) and error.code not in _CODES:
        return False
    if isinstance(error, _OF_THE_DATA) or error.from_call:
        return error.from_call and not isinstance(error, _OF_THE_DATA)
    # A bad result that was found here is this handler's own already.
    return error.code != "bad_result" and _raised_in_mesh(error)


def reduced(exc: BaseException) -> BaseException:
    """A group of one exception as that exception, a group of mesh errors of one code as one error of that code.

    Anything else is given back as it is.
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
        # As one of its class, so that it is taken for what it is.
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
    """The exceptions in a group, however deep; the exception itself when it is none."""
    if not isinstance(exc, BaseExceptionGroup):
        yield exc
        return
    for each in exc.exceptions:
        yield from leaves_of(each)


def text_of(exc: BaseException) -> str:
    """The exception's message, with the exceptions in it when it is a group, and with what it was raised from.

    An exception's own `__str__` may raise; the text says so then.
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
    """For callers: the exit code that a SystemExit asked for. None for other exceptions."""
    if not isinstance(exc, SystemExit):
        return None
    return {"exception": "SystemExit", "exit_code": exc.code if isinstance(exc.code, int | None) else text_of(exc)}


def location(exc: BaseException, run: Callable[..., Any] | None = None) -> str:
    """ "/srv/shop/orders.py:41": the innermost line outside of mesh and asyncio that the exception came through.

    Args:
        run: the handler; where it is defined is the answer for an exception that never was in its code.
    """
    found = _innermost(next(leaves_of(exc))) or _innermost(exc)
    if not found and exc.__cause__ is not None:
        # Where the exception was raised that a future does not take, and that this one stands for.
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
    """ "/srv/shop/orders.py:38": where a function is defined; "" for what has no source."""
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
    # Its own `__str__` may raise anything, SystemExit too.
    except BaseException as own:
        return f"(its message cannot be shown: {type(own).__name__})"


def _raised_in_mesh(error: BaseException) -> bool:
    """Whether a verb of mesh raised it, and not the code that used the verb."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__")
    return _is_of(module, ("mesh",)) and module != _FROM_CHILDREN


def _is_of(module: Any, packages: tuple[str, ...]) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in packages

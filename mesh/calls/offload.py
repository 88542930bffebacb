"""Runs handlers that would block the loop in threads or in child processes.

Owns: the pools, and the data that is passed to a child process and back.
Leaves to others: which methods are offloaded (service.decorators), limits and deadlines (server), the lifetime of the
children (processes).

A child gets a reference, the encoded body and the context of the work, and returns the encoded answer or an error map.
It decodes the arguments and encodes the answer itself, so the loop's process does neither, and only bytes, strings and
the fields of the context are pickled.
"""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from mesh.calls.context import CURRENT, CallContext, begin_trace
from mesh.calls.exhaustion import note
from mesh.calls.failures import failure_of, text_of
from mesh.calls.http_response import Response
from mesh.calls.importing import module_of
from mesh.calls.processes import ChildDied, ProcessPool
from mesh.calls.signature import Signature
from mesh.errors import MeshError, RemoteError, Unavailable, from_wire
from mesh.forking import end_forked_child
from mesh.protocol.http_head import to_meta
from mesh.telemetry.logs import get_logger
from mesh.telemetry.traces import current as TRACE

log = get_logger("mesh.calls")

Reference = tuple[str, str, str]
#: ("ok", body, encoding), ("response", body, (encoding, metadata)), or ("refused" | "error", error map, traceback for
#: the log)
ChildAnswer = tuple[str, Any, Any]


class ChildCrashed(Unavailable):
    """A child process died while it ran the call, for example by a signal or for lack of memory."""

    code = "child_crashed"
    retryable = False
    status = 500


class RefusedInChild(MeshError):
    """The arguments did not decode in the child, so the handler never started."""


class Offload:
    """The pools of one worker. Each starts with the first call that needs it, so that an idle worker stays small."""

    def __init__(self, processes: int, threads: int) -> None:
        self._processes = processes
        self._threads = threads
        self._thread_pool: ThreadPoolExecutor | None = None
        self._process_pool: ProcessPool | None = None
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """The pids of the current child processes."""
        return self._process_pool.pids if self._process_pool is not None else []

    def in_thread(
        self, run: Callable[..., Any], args: tuple[Any, ...], begun: Callable[[], None] | None = None
    ) -> Future[Any]:
        """Run `run(*args)` in a thread, with the context of the call that it answers.

        Args:
            begun: called in that thread when it begins the job.
        """
        self._check_open()
        if self._thread_pool is None:
            self._thread_pool = ThreadPoolExecutor(self._threads, thread_name_prefix="mesh-offload")
        return self._thread_pool.submit(contextvars.copy_context().run, _contained, run, args, begun)

    def in_process(
        self,
        reference: Reference,
        body: Any,
        encoding: int,
        check: bool = True,
        answer: int | None = None,
        begun: Callable[[], None] | None = None,
    ) -> Future[ChildAnswer]:
        """Run a method in a child process, with a copy of the current context; see `unpack` for its answer.

        Args:
            check: whether the answer is checked against the annotation, in the child.
            answer: the encoding of the answer; None takes that of the arguments.
            begun: called in another thread when a process is given the job.
        """
        self._check_open()
        if self._process_pool is None:
            self._process_pool = ProcessPool(self._processes, _in_child)
        begin_trace()
        context = CURRENT.get()
        around = context.detached() if context is not None else None
        return self._process_pool.submit(reference, bytes(body), encoding, check, answer, around, begun=begun)

    async def unpack(self, future: Future[ChildAnswer], target: str) -> tuple[Any, int]:
        """The encoded answer of a child.

        Raises:
            RefusedInChild: its cause is the BadArguments that the child found.
            ChildCrashed: the process died while it ran this job.
            MeshError: what the handler raised there.
        """
        try:
            kind, first, second = await asyncio.wrap_future(future)
        except ChildDied as exc:
            raise ChildCrashed(f"{target}: the process that ran it died: {exc}") from exc
        if kind == "ok":
            return first, second
        if kind == "response":
            call: Any = CURRENT.get()
            call.reply_meta = second[1]
            return first, second[0]
        error = from_wire(first)
        if kind == "refused":
            raise RefusedInChild(error.message) from error
        if isinstance(error, RemoteError) and second:
            log.error("handler.failed", target=target, error=str(error), exception=second)
        else:
            error.from_call = False  # raised by the handler itself, though in another process
        raise error

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the worker is stopping")

    async def close(self) -> None:
        """Stop the pools. Child processes are terminated; jobs in threads are not waited for."""
        self._closed = True
        processes = self._process_pool
        if self._thread_pool is not None:
            # A thread cannot be stopped, and a busy one must not keep the worker alive.
            self._thread_pool.shutdown(wait=False, cancel_futures=True)
        self._process_pool = self._thread_pool = None
        if processes is not None:
            await asyncio.get_running_loop().run_in_executor(None, processes.close)


def _contained(run: Callable[..., Any], args: tuple[Any, ...], begun: Callable[[], None] | None) -> Any:
    """Call `run(*args)`; replace exceptions that a future cannot hold by RuntimeError."""
    if begun is not None:
        begun()
    try:
        return run(*args)
    except (StopIteration, asyncio.CancelledError, CancelledError) as exc:
        # A future rejects StopIteration, and treats CancelledError as its own cancellation.
        raise RuntimeError(f"the handler raised {type(exc).__name__}({text_of(exc)})") from exc
    except BaseException as exc:
        end_forked_child(exc)
        raise
    finally:
        end_forked_child()


# --- in the child ---------------------------------------------------------------------------------------


_found: dict[Reference, tuple[Callable[..., Any], Signature]] = {}


def _find(reference: Reference) -> tuple[Callable[..., Any], Signature]:
    found = _found.get(reference)
    if found is None:
        module, class_name, method = reference
        cls = getattr(module_of(module), class_name)
        function = getattr(cls, method)
        # An instance without `__init__` or a node: an offloaded method can use only its arguments and its class.
        run = getattr(cls.__new__(cls), method)
        found = _found[reference] = (run, Signature(function, f"{cls.name}.{method}", owner=cls))
    return found


def _in_child(
    reference: Reference, body: bytes, encoding: int, check: bool, answer: int | None, context: CallContext | None
) -> ChildAnswer:
    """Run the handler in the child. The answer consists of bytes, text and plain values only, so it can be pickled."""
    label = ".".join(reference[1:])
    CURRENT.set(context)
    TRACE.set((context.trace or "") if context is not None else "")
    try:
        try:
            run, signature = _find(reference)
            label = signature.label
            args = signature.decode_args(body, encoding)
        except MeshError as error:
            return "refused", error.to_wire(), None
        encode = signature.encode_checked if check else signature.encode_result
        value = run(*args)
        meta = None
        if signature.responds and isinstance(value, Response):
            value, meta = value.body, to_meta(value.head)
        encoded, used = encode(value, encoding if answer is None else answer)
        return ("ok", bytes(encoded), used) if meta is None else ("response", bytes(encoded), (used, meta))
    except BaseException as exc:
        note(exc)
        # Decided here, where the traceback still shows which code raised it.
        failure = failure_of(exc, label).error
        told = failure.code == RemoteError.code
        return "error", failure.to_wire(), "".join(traceback.format_exception(exc)) if told else None

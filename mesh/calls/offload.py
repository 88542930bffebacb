"""Running what would block the loop: in threads, or in processes of their own.

Owns: the pools, what crosses into a child process and back, and replacing a pool that broke.
Leaves to others: which methods are offloaded (service.decorators), limits and deadlines (server).

Into a child go a reference and the encoded body; out come the encoded answer or an error map. Typed values are made
and encoded in the child, so the loop's process pays for neither, and nothing is pickled but bytes and strings.
"""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from mesh.calls.importing import module_of
from mesh.calls.signature import Signature
from mesh.errors import MeshError, RemoteError, Unavailable, from_wire
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.calls")

Reference = tuple[str, str, str]
#: ("ok", body, encoding) or ("refused" | "error", error map, traceback for the log)
ChildAnswer = tuple[str, Any, Any]


class ChildCrashed(Unavailable):
    """A child process died under the call, by a signal or by running out of memory."""

    code = "child_crashed"
    retryable = False
    status = 500


class RefusedInChild(MeshError):
    """The arguments did not decode in the child: the handler surely never started."""


class Offload:
    """The pools of one worker. They start with the first call that needs them: an idle worker stays small."""

    def __init__(self, processes: int, threads: int) -> None:
        self._processes = processes
        self._threads = threads
        self._thread_pool: ThreadPoolExecutor | None = None
        self._process_pool: ProcessPoolExecutor | None = None
        # Which pool a call runs in: when it breaks, another may have taken its place already.
        self._pools: weakref.WeakKeyDictionary[Future[ChildAnswer], ProcessPoolExecutor] = weakref.WeakKeyDictionary()
        self._closed = False

    def in_thread(self, run: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
        """Run `run(*args)` in a thread, with the context of the call that it answers."""
        self._check_open()
        if self._thread_pool is None:
            self._thread_pool = ThreadPoolExecutor(self._threads, thread_name_prefix="mesh-offload")
        return self._thread_pool.submit(contextvars.copy_context().run, run, *args)

    def in_process(self, reference: Reference, body: Any, encoding: int, check: bool = True) -> Future[ChildAnswer]:
        """Run a method in a child process; see `unpack` for its answer, which is checked there if `check`."""
        self._check_open()
        if self._process_pool is None:
            # spawn: a ZeroMQ context and an event loop do not survive a fork.
            self._process_pool = ProcessPoolExecutor(
                self._processes, mp_context=multiprocessing.get_context("spawn"), initializer=_die_with_parent
            )
        pool = self._process_pool
        try:
            future = pool.submit(_in_child, reference, bytes(body), encoding, check)
        except BrokenProcessPool:
            self._renew(pool)
            return self.in_process(reference, body, encoding, check)
        self._pools[future] = pool
        return future

    async def unpack(self, future: Future[ChildAnswer], target: str) -> tuple[Any, int]:
        """The encoded answer of a child.

        Raises:
            RefusedInChild: its cause is the BadArguments that the child found.
            ChildCrashed: the process died.
            MeshError: what the handler raised there.
        """
        try:
            kind, first, second = await asyncio.wrap_future(future)
        except BrokenProcessPool as exc:
            self._renew(self._pools.get(future))
            raise ChildCrashed(f"{target}: the process that ran it died (out of memory, or a crash in C code)") from exc
        if kind == "ok":
            return first, second
        error = from_wire(first)
        if kind == "refused":
            raise RefusedInChild(error.message) from error
        if isinstance(error, RemoteError) and second:
            log.error("offloaded handler failed", target=target, error=str(error), exception=second)
        else:
            error.from_call = False  # the handler's own word, only from another process
        raise error

    def _renew(self, broken: ProcessPoolExecutor | None) -> None:
        """Replace a pool that broke. All its calls fail one after the other; the first of them does this."""
        if broken is not None and broken is self._process_pool:
            self._process_pool = None
            log.warning("a process of the offload pool died; the pool is started anew")
            broken.shutdown(wait=False, cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the worker is stopping")

    async def close(self) -> None:
        """Stop the pools; what runs in them is not waited for longer than it takes to end a process."""
        self._closed = True
        processes = self._process_pool
        if self._thread_pool is not None:
            # A thread cannot be stopped; one that is still busy must not keep the worker alive either.
            self._thread_pool.shutdown(wait=False, cancel_futures=True)
        self._process_pool = self._thread_pool = None
        if processes is not None:
            for child in list((processes._processes or {}).values()):
                child.terminate()
            await asyncio.get_running_loop().run_in_executor(None, _shut_down, processes)


def _shut_down(pool: ProcessPoolExecutor) -> None:
    pool.shutdown(wait=True, cancel_futures=True)


# --- in the child ---------------------------------------------------------------------------------------


def _die_with_parent() -> None:
    """A worker that is killed with -9 cannot tell its children: each watches for it."""
    import signal

    # Ctrl-C goes to the whole foreground group; the worker decides when its children stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="mesh-parent-watch").start()


_found: dict[Reference, tuple[Callable[..., Any], Signature]] = {}


def _find(reference: Reference) -> tuple[Callable[..., Any], Signature]:
    found = _found.get(reference)
    if found is None:
        module, class_name, method = reference
        cls = getattr(module_of(module), class_name)
        function = getattr(cls, method)
        # An instance without a node: an offloaded method computes, and has its arguments and its class to do so.
        run = getattr(cls.__new__(cls), method)
        found = _found[reference] = (run, Signature(function, f"{cls.name}.{method}", owner=cls))
    return found


def _in_child(reference: Reference, body: bytes, encoding: int, check: bool) -> ChildAnswer:
    try:
        run, signature = _find(reference)
        args = signature.decode_args(body, encoding)
    except MeshError as error:
        return "refused", error.to_wire(), None
    try:
        encode = signature.encode_checked if check else signature.encode_result
        encoded, used = encode(run(*args), encoding)
        return "ok", bytes(encoded), used
    except MeshError as error:
        return "error", error.to_wire(), None
    except Exception as exc:
        wire = RemoteError(str(exc), type_name=type(exc).__name__).to_wire()
        return "error", wire, traceback.format_exc()

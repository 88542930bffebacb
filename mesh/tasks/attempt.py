"""One attempt from its lease to its acknowledgement, and the worker's description of a task.

Owns: the two records, decoding the arguments and encoding the answer, and starting the function in its executor.
Leaves to others: timeouts and the end of an attempt (runner), describing a method (worker.workload).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextvars import Context
from enum import Enum
from typing import Any, Final, Literal, Protocol

import msgspec

from mesh.calls import method
from mesh.calls.interceptors import Delivery
from mesh.calls.offload import Offload, RefusedInChild
from mesh.calls.signature import Signature, encode_arguments
from mesh.errors import MeshError
from mesh.forking import GUARD, end_forked_child
from mesh.policy.backoff import Backoff
from mesh.protocol.messages import MSGPACK, RAW
from mesh.tasks.canvas import with_prior
from mesh.tasks.context import TaskContext
from mesh.tasks.contract import Lease
from mesh.tasks.deferring import PRIOR_META, encoding_of
from mesh.telemetry.metrics import MethodStats

_pack: Final = msgspec.msgpack.Encoder().encode
Buffer = bytes | bytearray | memoryview


class Work(msgspec.Struct, frozen=True):
    """What a worker runs for one queue.

    Attributes:
        queue: "service.task", or "service.handler" of a durable event.
        run: the bound function; takes the values that `read` returns.
        read: decodes the arguments of a lease. Raises BadArguments.
        write: encodes the answer as MessagePack. Raises BadResult.
        asynchronous: `run` returns an awaitable.
        retries, backoff, timeout_s, fatal: see mesh.tasks.options.
        offload, reference, check_result, around, decode_result: see mesh.calls.method.
        kind: "task" or "event", for the interceptors.
    """

    queue: str
    run: Callable[..., Any]
    read: Callable[[Lease], tuple[Any, ...]]
    write: Callable[[Any], bytes]
    retries: int
    backoff: Backoff
    timeout_s: float
    fatal: tuple[type[Exception], ...] = ()
    asynchronous: bool = True
    offload: method.Offload = ""
    reference: tuple[str, str, str] | tuple[()] = ()
    check_result: bool = True
    around: Callable[[Any], Callable[[Any], Awaitable[Any]]] | None = None
    decode_result: Callable[[Any, int], Any] | None = None
    kind: Literal["task", "event"] = "task"


class Stop(Enum):
    """Why an attempt is stopped."""

    NO = ""
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LEAVING = "leaving"
    LOST = "lost"


class Stops(Protocol):
    """The method of the runner that an attempt uses."""

    def stop_one(self, attempt: Attempt, why: Stop) -> None: ...


class Attempt(TaskContext, kw_only=True):
    """One running attempt; the TaskContext of its handler.

    Attributes:
        began_at: when it began, by the clock.
        values: the decoded arguments.
        begun: the asyncio task of its handler has made its first step.
        settling: the handler has returned: only the acknowledgement is left, which only a lost lease stops.
        stopped: why it is stopped.
        slot: used by Expiries.
        hold: its future in the executor; work that runs there cannot be stopped.
        taken_up: the executor has started it; its timeout counts from then.
        conflicts: how many commits of its effects failed with Conflict.
    """

    runner: Stops
    work: Work
    stats: MethodStats
    began_at: float = 0.0
    values: tuple[Any, ...] = ()
    task: asyncio.Task[None] | None = None
    begun: bool = False
    settling: bool = False
    stopped: Stop = Stop.NO
    slot: int = 0
    hold: Any = None
    taken_up: bool = False
    conflicts: int = 0

    @property
    def over(self) -> bool:
        return self.settling

    @property
    def timeout_s(self) -> float:
        """How long the attempt may take."""
        return self.lease.timeout_s or self.work.timeout_s

    def expire(self) -> None:
        """Stop the attempt: its timeout is over."""
        self.runner.stop_one(self, Stop.TIMEOUT)


def reader(signature: Signature) -> Callable[[Lease], tuple[Any, ...]]:
    """A function that decodes the arguments of a lease, with the answers of earlier steps in their places."""
    decode = signature.decode_args

    def read(lease: Lease) -> tuple[Any, ...]:
        body = arguments_of(lease)
        return decode(body, encoding_of(body))

    return read


def arguments_of(lease: Lease) -> bytes:
    """The encoded arguments, complete.

    Raises:
        BadArguments: the answer of the previous step has no place in them.
    """
    if lease.meta and PRIOR_META in lease.meta:
        return with_prior(lease.body, lease.meta[PRIOR_META], lease.prior)
    return lease.body


def writer(signature: Signature, *, check: bool = True) -> Callable[[Any], bytes]:
    """A function that encodes the answer of a task: always MessagePack, so that the next step can take it as argument.

    Args:
        check: reject an answer that does not match the annotation.
    """
    encode = signature.encode_checked if check else signature.encode_result

    def write(value: Any) -> bytes:
        return as_msgpack(*encode(value, MSGPACK))

    return write


def as_msgpack(body: Buffer, encoding: int) -> bytes:
    """An encoded answer as MessagePack: processes exchange bytes raw, but they are stored as MessagePack."""
    return _pack(body) if encoding == RAW else bytes(body)


# --- setting it off ---------------------------------------------------------------------------------------


async def run_offloaded(offload: Offload | None, attempt: Attempt, now: Callable[[], float]) -> bytes:
    """Run the function in a thread or a process; return its answer as MessagePack.

    Raises:
        RefusedInChild: the child process rejected the arguments. Otherwise the function's own exception.
    """
    assert offload is not None, "the worker creates its pools before it runs tasks"
    work, lease = attempt.work, attempt.lease
    attempt.taken_up = False

    def begun() -> None:
        attempt.deadline_at = now() + attempt.timeout_s
        attempt.taken_up = True

    if work.around is not None:
        return await _run_intercepted(offload, attempt, begun)
    if work.offload == "thread":
        attempt.hold = offload.in_thread(work.run, attempt.values, begun)
        return work.write(await asyncio.wrap_future(attempt.hold))
    assert len(work.reference) == 3
    body = arguments_of(lease)
    attempt.hold = offload.in_process(work.reference, body, _encoding(lease, body), work.check_result, begun=begun)
    return as_msgpack(*await offload.unpack(attempt.hold, work.queue))


async def _run_intercepted(offload: Offload, attempt: Attempt, begun: Callable[[], None]) -> bytes:
    """`run_offloaded` with interceptors, which run on the loop."""
    work, lease = attempt.work, attempt.lease
    assert work.around is not None
    if work.offload == "process":
        try:
            attempt.values = work.read(lease)
        except MeshError as error:
            raise RefusedInChild(error.message) from error
    given = attempt.values

    async def innermost(call: Delivery) -> Any:
        if work.offload == "thread":
            attempt.hold = offload.in_thread(work.run, call.args, begun)
            return await asyncio.wrap_future(attempt.hold)
        assert len(work.reference) == 3
        assert work.decode_result is not None
        body, encoding = arguments_of(lease), MSGPACK
        if call.args is given:
            encoding = _encoding(lease, body)
        else:
            body = encode_arguments(call.args, {}, work.queue)
        attempt.hold = offload.in_process(work.reference, body, encoding, work.check_result, begun=begun)
        return work.decode_result(*await offload.unpack(attempt.hold, work.queue))

    return work.write(await work.around(innermost)(Delivery(attempt, work.queue, work.kind, given)))


def _encoding(lease: Lease, body: bytes) -> int:
    return lease.encoding if lease.topic else encoding_of(body)


if sys.version_info >= (3, 12):

    def begin(coroutine: Any, loop: asyncio.AbstractEventLoop, name: str, context: Context) -> asyncio.Task[None]:
        """Start an asyncio task with this context."""
        # Runs at once to its first wait: most handlers end without an iteration of the loop.
        task = asyncio.Task(coroutine, loop=loop, name=name, context=context, eager_start=True)
        if GUARD.strayed:
            # The handler forked in that first step: this child must not go on to its parent's sockets.
            end_forked_child()
        return task

else:

    def begin(coroutine: Any, loop: asyncio.AbstractEventLoop, name: str, context: Context) -> asyncio.Task[None]:
        """A task of the loop with this context."""
        return asyncio.Task(coroutine, loop=loop, name=name, context=context)

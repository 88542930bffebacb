"""One attempt from its lease to its acknowledgement, and what a worker knows of the task that it runs.

Owns: the two records, decoding the arguments and encoding the answer, and setting the function off where it belongs.
Leaves to others: its time and its end (runner), what is known of a method (service.workload).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextvars import Context
from enum import Enum
from typing import Any, Final, Protocol

import msgspec

from mesh.calls import method
from mesh.calls.offload import Offload
from mesh.calls.signature import Signature
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
        run: the bound function, taking the values that `read` gives.
        read: a lease to the values. Raises BadArguments.
        write: the answer to MessagePack. Raises BadResult.
        asynchronous: `run` gives an awaitable.
        retries, backoff, timeout_s, fatal: see mesh.tasks.options.
        offload, reference, check_result: see mesh.calls.method.
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


class Stop(Enum):
    """Why an attempt was told to stop."""

    NO = ""
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LEAVING = "leaving"
    LOST = "lost"


class Stops(Protocol):
    """What an attempt asks of its runner."""

    def stop_one(self, attempt: Attempt, why: Stop) -> None: ...


class Attempt(TaskContext, kw_only=True):
    """One attempt in hand; the TaskContext of its handler.

    Attributes:
        began_at: of the clock.
        values: the decoded arguments.
        begun: its handler's task has had its first step.
        settling: the handler has returned: what is left is the acknowledgement, which nothing stops but a lost lease.
        stopped: why it was told to stop.
        slot: for Expiries.
        hold: what runs in a pool and cannot be stopped there.
        taken_up: a thread or process of the pool has taken it up; its time counts from then.
        conflicts: how often its effects met a Conflict.
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
        """How long it may take."""
        return self.lease.timeout_s or self.work.timeout_s

    def expire(self) -> None:
        """Its time is over."""
        self.runner.stop_one(self, Stop.TIMEOUT)


def reader(signature: Signature) -> Callable[[Lease], tuple[Any, ...]]:
    """How the arguments of a task are read; the answers of earlier steps put in their places."""
    decode = signature.decode_args

    def read(lease: Lease) -> tuple[Any, ...]:
        body = arguments_of(lease)
        return decode(body, encoding_of(body))

    return read


def arguments_of(lease: Lease) -> bytes:
    """The encoded arguments, complete.

    Raises:
        BadArguments: the answer of the step before has no place in them.
    """
    if lease.meta and PRIOR_META in lease.meta:
        return with_prior(lease.body, lease.meta[PRIOR_META], lease.prior)
    return lease.body


def writer(signature: Signature, *, check: bool = True) -> Callable[[Any], bytes]:
    """How the answer of a task is kept: always MessagePack, so that it can become an argument of the next step.

    Args:
        check: refuse an answer that is not what the annotation promises.
    """
    encode = signature.encode_checked if check else signature.encode_result

    def write(value: Any) -> bytes:
        return as_msgpack(*encode(value, MSGPACK))

    return write


def as_msgpack(body: Buffer, encoding: int) -> bytes:
    """An encoded answer as MessagePack: bytes travel raw between processes, but are kept as what they are."""
    return _pack(body) if encoding == RAW else bytes(body)


# --- setting it off ---------------------------------------------------------------------------------------


async def run_offloaded(offload: Offload | None, attempt: Attempt, now: Callable[[], float]) -> bytes:
    """Run the function in a thread or a process; its answer as MessagePack.

    Raises:
        RefusedInChild: the arguments do not fit, as the child found. Otherwise what the function raised.
    """
    assert offload is not None, "a worker has its pools when it runs tasks"
    work, lease = attempt.work, attempt.lease
    attempt.taken_up = False

    def begun() -> None:
        attempt.deadline_at = now() + attempt.timeout_s
        attempt.taken_up = True

    if work.offload == "thread":
        attempt.hold = offload.in_thread(work.run, attempt.values, begun)
        return work.write(await asyncio.wrap_future(attempt.hold))
    assert len(work.reference) == 3
    body = arguments_of(lease)
    encoding = lease.encoding if lease.topic else encoding_of(body)
    attempt.hold = offload.in_process(work.reference, body, encoding, work.check_result, begun=begun)
    return as_msgpack(*await offload.unpack(attempt.hold, work.queue))


if sys.version_info >= (3, 12):

    def begin(coroutine: Any, loop: asyncio.AbstractEventLoop, name: str, context: Context) -> asyncio.Task[None]:
        """A task of the loop with this context."""
        # Runs at once to its first wait: most handlers are done without a turn of the loop.
        return asyncio.Task(coroutine, loop=loop, name=name, context=context, eager_start=True)

else:

    def begin(coroutine: Any, loop: asyncio.AbstractEventLoop, name: str, context: Context) -> asyncio.Task[None]:
        """A task of the loop with this context."""
        return asyncio.Task(coroutine, loop=loop, name=name, context=context)

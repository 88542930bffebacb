"""Running handlers: from an admitted call to its final message.

Owns: concurrency (which calls run, wait or are refused), the tasks of handlers, and stopping them.
Leaves to others: receiving calls (server), pools (offload), limits as numbers (policy.limits).
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from mesh.calls.context import CURRENT
from mesh.calls.exhaustion import note
from mesh.calls.failures import Failure, failure_of, location
from mesh.calls.interceptors import IncomingCall
from mesh.calls.method import Method
from mesh.calls.offload import Offload, RefusedInChild
from mesh.calls.running import Hosted, Running
from mesh.calls.signature import encode_arguments
from mesh.clock import Clock
from mesh.errors import Cancelled, DeadlineExceeded, Draining, MeshError, Overloaded, RemoteError
from mesh.forking import GUARD, end_forked_child
from mesh.policy.limits import REFUSE, RUN, Gate, Verdict
from mesh.protocol.messages import MSGPACK
from mesh.telemetry.logs import get_logger
from mesh.telemetry.traces import accept, child
from mesh.telemetry.traces import current as TRACE

log = get_logger("mesh.calls")

#: Why a handler was stopped; decides which error its caller gets.
CALLER_GONE: Final = "caller gone"
BY_CALLER: Final = "cancelled"
DEADLINE: Final = "deadline"
STOPPING: Final = "stopping"

#: Log lines about slow calls per second. Further ones are counted, and the next line carries the count.
MOST_SLOW_LINES: Final = 10

#: The deadline in a handler's context after it has returned: tasks that it left running have none.
NEVER: Final = float("inf")


class Handling:
    """The handlers of one worker."""

    def __init__(
        self,
        *,
        clock: Clock,
        identity: str,
        offload: Offload,
        max_body: int,
        traceback_on_wire: bool,
        ended: Callable[[], None],
        slow_s: float = NEVER,
        debug: bool = False,
    ) -> None:
        """Args:
        ended: called after each call that ends, once `leaving` is set.
        slow_s: calls that take at least this long are logged as warnings.
        debug: log all other calls too, at level debug.
        """
        self.leaving = False
        self._now = clock.now
        self._identity = identity
        self._offload = offload
        self._max_body = max_body
        self._traceback_on_wire = traceback_on_wire
        self._ended = ended
        self._slow_s = slow_s
        self._telling_since = -NEVER
        self._told = self._left_out = 0
        # One comparison per call decides on both lines.
        self._told_s = 0.0 if debug else slow_s
        self._loop = asyncio.get_running_loop()

    # --- from admission to a task --------------------------------------------------------------------------

    def admit(self, running: Running) -> None:
        """Start a call, queue it, or refuse it. The conversation's `running` contains it already."""
        hosted = running.hosted
        gate = hosted.gate
        service_gate = hosted.service_gate
        if gate is None and service_gate.running < service_gate.concurrency:
            service_gate.running += 1  # Gate.admit, inlined: the path of nearly all calls
            self._launch(running)
            return
        verdict = RUN if gate is None else self._enter(gate, running)
        full = gate
        if verdict is RUN:
            full = service_gate
            verdict = self._enter(service_gate, running)
            if verdict is RUN:
                self._launch(running)
        if verdict is REFUSE:
            assert full is not None
            self._refuse(running, self._overloaded(running, full))
            if full is service_gate and gate is not None:
                self._pass_on(gate)

    def _enter(self, gate: Gate[Running], running: Running) -> Verdict:
        """Request a place at a gate. In a full queue, a call of the tenant with the most queued calls gives way."""
        tenant = running.tenant
        verdict = gate.admit(running, tenant)
        if verdict is REFUSE:
            displaced = gate.displace(tenant)
            if displaced is not None:
                verdict = gate.admit(running, tenant)
                self._refuse(displaced, self._overloaded(displaced, gate))
                if gate is displaced.hosted.service_gate and displaced.hosted.gate is not None:
                    self._pass_on(displaced.hosted.gate)
        return verdict

    def _overloaded(self, running: Running, full: Gate[Running]) -> Overloaded:
        return Overloaded(
            f"{running.target}: {self._identity} is at its limit ({full.concurrency} running, {full.queue} queued)"
        )

    def _refuse(self, running: Running, error: MeshError) -> None:
        """Refuse a call that has not started."""
        self._settle(running, error.code)
        running.conversation.callee.refuse(running.id, error)
        running.conversation.channel.wake()

    def _launch(self, running: Running) -> None:
        method = running.hosted.method
        coroutine = self._run_stream(running) if method.stream else self._run_call(running)
        task = _task(coroutine, self._loop, method.target)
        if not task.done():
            running.task = task

    def _launch_queued(self, running: Running) -> None:
        running.waited_s = self._now() - running.began_at
        self._launch(running)

    async def _run_call(self, running: Running) -> None:
        running.begun = True
        CURRENT.set(running)
        if running.trace:
            running.trace = child(accept(running.trace))
            TRACE.set(running.trace)
        hosted = running.hosted
        method = hosted.method
        try:
            if method.offload:
                body, encoding = await self._run_offloaded(running, method)
            else:
                result = method.run(*running.values)
                if method.asynchronous:
                    result = await result
                body, encoding = method.encode_result(result, running.encoding)
            if len(body) > self._max_body:
                raise _too_large(method.target, len(body), self._max_body)
        except BaseException as exc:
            self._failed(running, exc)
        else:
            conversation = running.conversation
            if method.offload or hosted.gate is not None or self.leaving:
                self._end(running, "")
            else:
                # _end, inlined: the path of nearly all calls.
                conversation.running.pop(running.id, None)
                running.deadline_at = NEVER
                took_s = self._now() - running.began_at
                hosted.stats.end(took_s)
                if took_s >= self._told_s:
                    self._tell(running, took_s, "")
                following = hosted.service_gate.release()
                if following is not None:
                    self._launch_queued(following)
            conversation.callee.reply(running.id, body, encoding, running.reply_meta)
            conversation.channel.wake()
        running.task = None  # breaks a cycle: the task's context refers to `running`; see dealer.OVER

    async def _run_offloaded(self, running: Running, method: Method) -> tuple[Any, int]:
        if method.around is not None:
            return await self._run_intercepted(running, method)
        if method.offload == "thread":
            running.hold = self._offload.in_thread(method.run, running.values)
            return method.encode_result(await asyncio.wrap_future(running.hold), running.encoding)
        assert len(method.reference) == 3
        running.hold = self._offload.in_process(
            method.reference, running.body, running.encoding, method.check_result, running.answer_encoding
        )
        return await self._offload.unpack(running.hold, method.target)

    async def _run_intercepted(self, running: Running, method: Method) -> tuple[Any, int]:
        """`_run_offloaded` with interceptors, which run on the loop."""
        assert method.around is not None
        if method.offload == "process":
            try:
                running.values = method.decode_args(running.body, running.encoding)
            except MeshError as error:
                raise RefusedInChild(error.message) from error
        given = running.values

        async def innermost(call: IncomingCall) -> Any:
            if method.offload == "thread":
                running.hold = self._offload.in_thread(method.run, call.args)
                return await asyncio.wrap_future(running.hold)
            assert len(method.reference) == 3
            assert method.decode_result is not None
            body, encoding = running.body, running.encoding
            if call.args is not given:
                body, encoding = encode_arguments(call.args, {}, method.target), MSGPACK
            running.hold = self._offload.in_process(method.reference, body, encoding, method.check_result)
            return method.decode_result(*await self._offload.unpack(running.hold, method.target))

        answer = await method.around(innermost)(IncomingCall(running, given))
        encoding = running.encoding if running.answer_encoding is None else running.answer_encoding
        return method.encode_result(answer, encoding)

    async def _run_stream(self, running: Running) -> None:
        running.begun = True
        CURRENT.set(running)
        if running.trace:
            running.trace = child(accept(running.trace))
            TRACE.set(running.trace)
        method = running.hosted.method
        outflow = running.outflow
        assert outflow is not None
        conversation = running.conversation
        items = method.run(*running.values)
        try:
            try:
                async for item in items:
                    while not outflow.take():
                        running.credited = self._loop.create_future()
                        await running.credited
                    body, encoding = method.encode_result(item, running.encoding)
                    if len(body) > self._max_body:
                        raise _too_large(method.target, len(body), self._max_body)
                    conversation.callee.item(running.id, body, encoding)
                    conversation.channel.wake()
            finally:
                await items.aclose()
        except BaseException as exc:
            self._failed(running, exc)
        else:
            self._end(running, "")
            conversation.callee.end(running.id)
            conversation.channel.wake()
        running.task = None

    def _failed(self, running: Running, exc: BaseException) -> None:
        """The handler raised: send the error, and log it when no other process has.

        SystemExit and KeyboardInterrupt count as failures of the handler: they do not end the worker.
        """
        note(exc)
        if not isinstance(exc, Exception):
            end_forked_child(exc)
        callee = running.conversation.callee
        unexpected = False
        if isinstance(exc, RefusedInChild):
            cause = exc.__cause__
            error: MeshError = cause if isinstance(cause, MeshError) else exc
            self._end(running, error.code)
            callee.refuse(running.id, error)
        else:
            error, unexpected = self._failure(running, exc)
            self._end(running, error.code)
            callee.error(running.id, error)
        running.conversation.channel.wake()
        if unexpected:
            # Last: if logging a foreign exception fails, the caller has its answer already.
            log.error(
                "handler.failed",
                target=running.target,
                caller=running.caller,
                error=f"{error.type_name}: {error.message}",
                at=location(exc, running.hosted.method.run),
                exc_info=(type(exc), exc, exc.__traceback__),
            )

    def _failure(self, running: Running, exc: BaseException) -> Failure:
        if isinstance(exc, asyncio.CancelledError) and running.stopped:
            return Failure(self._stopped(running), False)
        method = running.hosted.method
        if isinstance(exc, MeshError) and (method.service.startswith(("mesh-", "$")) or method.name.startswith("$")):
            # Errors of the framework's own methods reach the caller unchanged.
            return Failure(exc, exc.status == 500 and not exc.from_call)
        failure = failure_of(exc, running.target)
        if self._traceback_on_wire and failure.error.__cause__ is not None and not failure.error.from_call:
            failure.error.details["traceback"] = _trace(exc)
        return failure

    def _stopped(self, running: Running) -> MeshError:
        """The error for a handler that was stopped."""
        if running.stopped == DEADLINE:
            return DeadlineExceeded(
                f"{running.target}: no answer within {running.deadline_at - running.began_at:.2g} s"
            )
        if running.stopped == STOPPING:
            return Draining(f"{running.target}: {self._identity} stopped before it was done")
        return Cancelled(f"{running.target}: cancelled")

    def _tell(self, running: Running, took_s: float, code: str) -> None:
        """Log one line about a slow call, or about any call at level debug."""
        slow = took_s >= self._slow_s
        if running.hosted.method.stream or (slow and not self._may_tell()):
            return
        line = log.warning if slow else log.debug
        more = {"left_out": self._left_out} if slow and self._left_out else {}
        if slow:
            self._left_out = 0
        line(
            "call.slow" if slow else "call.ended",
            target=running.target,
            caller=running.caller,
            took_s=round(took_s, 6),
            waited_s=round(running.waited_s, 6),
            code=code or "ok",
            **more,
        )

    def _may_tell(self) -> bool:
        """Whether another line about a slow call may be logged in this second, by MOST_SLOW_LINES."""
        now = self._now()
        if now - self._telling_since >= 1.0:
            self._telling_since, self._told = now, 0
        self._told += 1
        if self._told > MOST_SLOW_LINES:
            self._left_out += 1
            return False
        return True

    # --- stopping -------------------------------------------------------------------------------------------

    def stop_one(self, running: Running, why: str) -> None:
        """Stop a call that is queued or runs; its handler sees CancelledError."""
        if running.stopped:
            return
        running.stopped = why
        hosted = running.hosted
        if running.task is not None:
            running.task.cancel()
            if not running.begun:
                # A task that is cancelled before its first step never runs: refuse the call and free its place here.
                self._refuse(running, self._stopped(running))
                self._give_back(hosted)
            return
        error = self._stopped(running)
        if hosted.gate is not None and hosted.gate.withdraw(running):
            self._refuse(running, error)
        elif hosted.service_gate.withdraw(running):
            self._refuse(running, error)
            if hosted.gate is not None:
                self._pass_on(hosted.gate)

    # --- concurrency ------------------------------------------------------------------------------------------

    def _end(self, running: Running, code: str) -> None:
        """A call that was running has ended: give its places to waiting calls."""
        hosted = running.hosted
        self._settle(running, code)
        if running.hold is not None and not running.hold.done():
            # Work in a thread or process cannot be stopped: it keeps its place until it is done, so that the limit
            # holds.
            running.hold.cancel()
            if not running.hold.done():
                running.hold.add_done_callback(lambda _: self._give_back_later(hosted))
                return
        self._give_back(hosted)

    def _give_back_later(self, hosted: Hosted) -> None:
        """Called in a thread of the pool, possibly after the worker has ended."""
        try:
            self._loop.call_soon_threadsafe(self._give_back, hosted)
        except RuntimeError:
            return

    def _give_back(self, hosted: Hosted) -> None:
        following = hosted.service_gate.release()
        if following is not None:
            self._launch_queued(following)
        if hosted.gate is not None:
            self._pass_on(hosted.gate)

    def _pass_on(self, gate: Gate[Running]) -> None:
        """A place at a method's gate is free: pass its next waiting call to the service's gate."""
        following = gate.release()
        if following is None:
            return
        verdict = self._enter(following.hosted.service_gate, following)
        if verdict is RUN:
            self._launch_queued(following)
        elif verdict is REFUSE:
            self._refuse(following, Overloaded(f"{following.target}: the service is at its limit in {self._identity}"))
            self._pass_on(gate)

    def _settle(self, running: Running, code: str) -> None:
        running.conversation.running.pop(running.id, None)
        took_s = self._now() - running.began_at
        running.hosted.stats.end(took_s, code)
        if took_s >= self._told_s:
            self._tell(running, took_s, code)
        if running.hold is None or running.hold.done():
            running.deadline_at = NEVER
        if self.leaving:
            self._ended()


def _trace(exc: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(exc))[-8000:]
    except BaseException as own:
        return f"(its traceback cannot be shown: {type(own).__name__})"


def _too_large(target: str, size: int, most: int) -> MeshError:
    return RemoteError(
        f"{target} answered with {size} bytes; calls.max_body allows {most}", type_name="TooLarge", code="too_large"
    )


if sys.version_info >= (3, 12):

    def _task(coroutine: Any, loop: asyncio.AbstractEventLoop, name: str) -> asyncio.Task[None]:
        # Eager: runs up to its first wait at once. Most handlers never wait and finish without a turn of the loop.
        task = asyncio.Task(coroutine, loop=loop, name=name, eager_start=True)
        if GUARD.strayed:
            # The handler forked in that first step: this child must not go on to its parent's sockets.
            end_forked_child()
        return task

else:

    def _task(coroutine: Any, loop: asyncio.AbstractEventLoop, name: str) -> asyncio.Task[None]:
        # Not loop.create_task, which takes 50 % longer to support a task factory that is not set.
        return asyncio.Task(coroutine, loop=loop, name=name)

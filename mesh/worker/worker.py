"""The lifecycle of a worker: it starts the instances of its classes, and stops without losing a call.

Owns: the order of starting and stopping, timers, and signal handling.
Leaves to others: answering (calls.server), running tasks (task_worker), finding others (node), the methods of a class
(describe).

Start: find hubs → wait for needed services → `started` hooks → listen → register → ready → subscribe to tasks.
Stop:  leave hubs and send goodbye → no new tasks → finish running work → `stopped` hooks → close.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any, Final

from mesh import ids
from mesh.calls.context import CURRENT, PlainContext
from mesh.calls.exhaustion import note
from mesh.calls.failures import exit_details, failure_of, location
from mesh.clock import Clock
from mesh.config import Settings
from mesh.config.secrets import revealed
from mesh.discovery.record import Instance
from mesh.discovery.route_conflicts import ConflictLog
from mesh.discovery.share import NONE, RELEASE, share_meta
from mesh.engines.registry import Makers
from mesh.errors import SetupError, Unavailable
from mesh.events.inbox import Inbox
from mesh.forking import end_forked_child
from mesh.node.control import CONTROL_LIMIT
from mesh.node.node import Node
from mesh.policy.limits import Gate
from mesh.policy.liveness import EXIT_MEMORY
from mesh.policy.liveness import Stage as LivenessStage
from mesh.service.describe import Timer, handlers, methods, record, timers
from mesh.service.service import Service, make, run_hook
from mesh.telemetry import traces
from mesh.telemetry.identity import this_process
from mesh.telemetry.logs import get_logger
from mesh.telemetry.snapshot import ServiceSample
from mesh.transport.contract import Transport
from mesh.worker.canary import CanaryShare
from mesh.worker.task_worker import Shift
from mesh.worker.watchdog import Watchdog

log = get_logger("mesh.worker")

#: Exceptions of a hook that do not abort the stop.
_OWN: Final = (Exception, SystemExit, KeyboardInterrupt)
#: How often a worker that waits for a needed service logs a warning.
SAY_AGAIN_S = 5.0
#: How often the load in the registry is updated.
LOAD_EVERY_S = 1.0


class Stage(Enum):
    """The state of a worker."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


#: (stage, request) -> stage; a missing key is an error.
LIFE: dict[tuple[Stage, str], Stage] = {
    (Stage.NEW, "start"): Stage.STARTING,
    (Stage.STARTING, "ready"): Stage.READY,
    (Stage.STARTING, "drain"): Stage.DRAINING,
    (Stage.READY, "drain"): Stage.DRAINING,
    (Stage.DRAINING, "stop"): Stage.STOPPED,
    (Stage.STARTING, "stop"): Stage.STOPPED,
    (Stage.READY, "stop"): Stage.STOPPED,
    (Stage.NEW, "stop"): Stage.STOPPED,
}


class Worker:
    """The service instances of one process.

    Attributes:
        stage: its state.
        node: its endpoint in the mesh.
        services: one instance of each class.
        shift: its tasks and durable events; None before `start`.
    """

    def __init__(
        self,
        classes: Sequence[type[Service]],
        settings: Settings,
        *,
        transport: Transport | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        engines: Makers | None = None,
        role: str = "",
        canary: bool = False,
    ) -> None:
        """Args:
        role: the role of the process, which decides its key and which access rules apply to it; "" means the name of
            its first class.
        canary: it runs a new release that is on trial: calls reach it only while it is given a share of them, and it
            takes no tasks, durable events and schedules.

        Raises:
        SetupError: no classes, two of one name, or a class with an invalid declaration.
        """
        names = [cls.name for cls in classes]
        if not names:
            raise SetupError("a worker needs at least one service class")
        for name in names:
            if names.count(name) > 1:
                raise SetupError(f"two of the classes are named {name!r}: run them in separate workers")
        self.stage = Stage.NEW
        self.settings = settings
        self.identity = ids.instance_id(role or names[0])
        self.node = Node(settings, identity=self.identity, transport=transport, clock=clock, rng=rng, engines=engines)
        self.services: list[Service] = [_made(cls) for cls in classes]
        self.instance_ids: list[str] = []
        self._gates: dict[str, Gate[Any]] = {}
        self._inbox = Inbox(recorder=self.node.recorder, verifies=settings.access is not None)
        self._tasks: list[asyncio.Task[None]] = []
        self._busy_timers: set[asyncio.Task[None] | None] = set()
        self._began: list[Service] = []
        self.shift: Shift | None = None
        self._canary = CanaryShare(self.node.agent, self.node.clock) if canary else None
        #: Called with each stage of starting and draining; see policy.liveness.Stage.
        self.entered: Callable[[LivenessStage], None] = lambda stage: None

    def _step(self, asked: str) -> None:
        try:
            self.stage = LIFE[self.stage, asked]
        except KeyError:
            raise SetupError(f"worker {self.identity} is {self.stage.value}: it cannot {asked}") from None

    # --- starting -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when every instance is ready and registered.

        Raises:
            MeshError: the worker cannot start; call `stop` to clean up.
            Exception: a `started` hook raised it.
        """
        self._step("start")
        settings = self.settings
        classes = [type(service) for service in self.services]
        around = self.node.interceptors
        self.node.intercept(classes)
        server_methods = [
            methods(
                service, check_results=settings.calls.check_results, intercept=partial(around.method, type(service))
            )
            for service in self.services
        ]
        event_methods = [
            self._inbox.add(handlers(service, intercept=partial(around.handler, type(service))))
            for service in self.services
        ]
        shift = self.shift = Shift(self.node, self.services)
        self.entered("waiting")
        await self.node.start()
        for service in self.services:
            self._prepare(service)
        await self._wait_for_needs()
        self.entered("starting")
        await around.start(self.node, classes)
        for service in self.services:
            self._began.append(service)
            self.entered("starting")
            await self._run_started(service)
        endpoint = await self.node.listen()
        server = self.node.server
        assert server is not None
        for service, mine, events in zip(self.services, server_methods, event_methods, strict=True):
            # Read these from the class: an attribute of the instance may have any of these names.
            cls = type(service)
            limits = settings.services.get(cls.name)
            calls = settings.calls
            concurrency = cls.concurrency or (limits.concurrency if limits else calls.concurrency)
            queue = (limits.queue if limits else calls.queue) if cls.queue is None else cls.queue
            gate = self._gates[cls.name] = server.host([*mine, *events], concurrency, queue)
            waiting = partial(getattr, gate, "waiting")
            self.node.recorder.gauge(
                "calls_waiting", waiting, "Calls that wait in the queue of a limit.", service=cls.name
            )
        if self._canary is not None:
            server.host(self._canary.methods(), CONTROL_LIMIT, CONTROL_LIMIT)
        if self._inbox.wanted:
            self._inbox.open(self.node.transport, self.node.transport.endpoint(f"{self.identity}-events"))
        self._register(endpoint)
        self._step("ready")
        # Only after registration: a task may call this worker. "ready" does not wait for the engines.
        if self._canary is None:
            shift.begin()
        for service in self.services:
            for timer in timers(service, intercept=partial(around.timer, type(service))):
                self._tasks.append(asyncio.create_task(self._run_timer(timer), name=timer.label))
        self._tasks.append(asyncio.create_task(self._report_load(), name="mesh.load"))

    async def _run_started(self, service: Service) -> None:
        try:
            with self.node.interceptors.around_hook(type(service)):
                await run_hook(service, "started")
        except (SystemExit, KeyboardInterrupt) as exc:
            # Unchanged, these exceptions would leave the loop at once, without naming the service.
            end_forked_child(exc)
            raise SetupError(
                f"{type(service).name}: started() raised {type(exc).__name__}({exc}); raise an error that says what is "
                "missing instead",
                details={"service": type(service).name, **(exit_details(exc) or {"exception": type(exc).__name__})},
            ) from exc

    def _prepare(self, service: Service) -> None:
        cls = type(service)
        limits = self.settings.services.get(cls.name)
        service.node = self.node
        service.config = {**cls.config, **(revealed(limits.config) if limits else {})}
        if "log" not in vars(service):
            service.log = get_logger(f"services.{cls.name}", service=cls.name)

    async def _wait_for_needs(self) -> None:
        mine = {type(service).name for service in self.services}
        for service in self.services:
            for need in type(service).needs:
                # Services of one worker may need each other: they start together.
                while need not in mine:
                    try:
                        await self.node.wait_for(need, SAY_AGAIN_S)
                        break
                    except Unavailable:
                        log.warning("service.awaited", service=type(service).name, needs=need)

    def _register(self, endpoint: str) -> None:
        records: list[Instance] = []
        release = this_process().release
        meta = {RELEASE: release} if release else {}
        if self._canary is not None:
            meta |= share_meta(NONE)
        for service in self.services:
            # The first instance has its worker's id: a worker with a single service then has only one id.
            first = not records and self.identity.startswith(f"{type(service).name}-")
            own = self.identity if first else ids.instance_id(type(service).name)
            records.append(
                record(
                    type(service),
                    id=own,
                    epoch=self.node.epoch,
                    worker=self.identity,
                    host=self.settings.mesh.host,
                    pid=os.getpid(),
                    endpoint=endpoint,
                    events=self._inbox.endpoint,
                    meta=meta,
                    places=self._gates[type(service).name].concurrency,
                )
            )
        self.instance_ids = [one.id for one in records]
        self.node.recorder.services = [
            ServiceSample(one.service, one.version, self._canary is not None) for one in records
        ]
        if any(one.routes for one in records):
            conflicts = ConflictLog([one.service for one in records], lambda: self.node.table)
            self.node.agent.on_change(conflicts.on_change)
        self.node.agent.register(*records)
        if self._canary is not None:
            self._canary.announced(records)

    # --- running ------------------------------------------------------------------------------------------

    async def _run_timer(self, timer: Timer) -> None:
        clock = self.node.clock
        service, _, name = timer.label.rpartition(".")
        stats = self.node.recorder.method("timer", service, name)
        due_at = clock.now() + timer.period_s
        while True:
            await clock.sleep(max(0.0, due_at - clock.now()))
            if self.stage is Stage.DRAINING:
                return
            began_at = clock.now()
            stats.begin()
            code = ""
            self._busy_timers.add(asyncio.current_task())
            # Each run has its own trace.
            trace = traces.root()
            traces.current.set(trace)
            CURRENT.set(PlainContext(timer.label, trace=trace))
            try:
                await timer.run()
            except BaseException as exc:
                note(exc)
                end_forked_child(exc)
                if isinstance(exc, GeneratorExit) or (isinstance(exc, asyncio.CancelledError) and _is_cancelled()):
                    stats.end(clock.now() - began_at, "cancelled")
                    raise
                failure = failure_of(exc, timer.label)
                code = failure.error.code
                log.exception(
                    "timer.failed",
                    target=timer.label,
                    error=f"{failure.error.type_name}: {failure.error.message}",
                    at=location(exc, timer.run),
                )
            finally:
                self._busy_timers.discard(asyncio.current_task())
            stats.end(clock.now() - began_at, code)
            # From start to start; missed runs are skipped.
            due_at = max(due_at + timer.period_s, clock.now())

    async def _report_load(self) -> None:
        while True:
            await self.node.clock.sleep(LOAD_EVERY_S)
            for service, instance_id in zip(self.services, self.instance_ids, strict=True):
                self.node.agent.update_load(instance_id, self._gates[type(service).name].load)

    # --- stopping -----------------------------------------------------------------------------------------

    async def drain(self, reason: str = "stopping") -> bool:
        """Accept no new work and finish running work; whether this was done within the stop timeout."""
        self._step("drain")
        self.entered("draining")
        if self._canary is not None:
            self._canary.close()
        await _cancel([task for task in self._tasks if task not in self._busy_timers])
        server = self.node.server
        if server is not None:
            # Peers first: they stop sending within a millisecond. The news from the hubs takes longer.
            server.goodbye(reason)
        hooks = [asyncio.create_task(self._run_draining(service)) for service in self._began]
        # Let each hook run its first step: it may tell its handlers to end before the drain waits for them.
        await asyncio.sleep(0)
        timeout_s = self.settings.worker.stop_timeout_s
        # Calls, tasks and hooks share one time limit and drain concurrently.
        tasks_done, finished, hooks_done = await asyncio.gather(
            self._drain_tasks(timeout_s), self._drain_calls(timeout_s), self._finish(hooks, timeout_s)
        )
        if not hooks_done:
            log.warning("drain.hook_timed_out")
            await _cancel(hooks)
        # Drain runs of timers like calls: when the calls took all of the time, the runs are cut off, too.
        busy = [task for task in self._busy_timers if task is not None]
        timers_done = await self._finish(busy, timeout_s if finished else 0.0)
        finished = finished and timers_done and tasks_done
        await self._inbox.close(cancel=not finished)
        if not finished and server is not None:
            log.warning("drain.timed_out", in_hand=server.in_hand, tasks_done=tasks_done)
        return finished

    async def _drain_calls(self, timeout_s: float) -> bool:
        await self.node.agent.leave(*self.instance_ids)
        return await self.node.server.drain(timeout_s) if self.node.server is not None else True

    async def _drain_tasks(self, timeout_s: float) -> bool:
        """Finish running tasks and return the others at once, so that other workers can run them."""
        if self.shift is None:
            return True
        finished = await self.shift.drain(timeout_s)
        await self.shift.close()
        return finished

    async def _run_draining(self, service: Service) -> None:
        try:
            with self.node.interceptors.around_hook(type(service)):
                await run_hook(service, "draining")
        except _OWN:
            log.exception("hook.failed", hook="draining", service=type(service).name)

    async def _finish(self, tasks: Sequence[asyncio.Task[None]], timeout_s: float) -> bool:
        """Wait for tasks that are not done; whether all were done in time."""
        busy = {task for task in tasks if not task.done()}
        if not busy:
            return True
        limit = asyncio.create_task(self.node.clock.sleep(timeout_s), name="mesh.stop-timeout")
        try:
            while busy and not limit.done():
                await asyncio.wait({limit, *busy}, return_when=asyncio.FIRST_COMPLETED)
                busy = {task for task in busy if not task.done()}
        finally:
            limit.cancel()
            await asyncio.gather(limit, return_exceptions=True)
        return not busy

    async def stop(self) -> None:
        """Run the `stopped` hooks, then close everything. A second call has no effect."""
        if self.stage is Stage.STOPPED:
            return
        self._step("stop")
        if self._canary is not None:
            self._canary.close()
        await _cancel(self._tasks)
        if self.shift is not None:
            await self.shift.close()
        for service in reversed(self._began):
            try:
                with self.node.interceptors.around_hook(type(service)):
                    await run_hook(service, "stopped")
            except _OWN:
                log.exception("hook.failed", hook="stopped", service=type(service).name)
        await self.node.interceptors.stop()
        await self._inbox.close(cancel=True)
        await self.node.close()


def _made(cls: type[Service]) -> Service:
    try:
        return make(cls)
    except (SystemExit, KeyboardInterrupt) as exc:
        raise SetupError(
            f"{cls.name}: its constructor raised {type(exc).__name__}({exc}); raise an error that says what is missing "
            "instead",
            details={"service": cls.name, **(exit_details(exc) or {"exception": type(exc).__name__})},
        ) from exc


def _is_cancelled() -> bool:
    """Whether the current task itself was cancelled, and not only something that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def settle_memory() -> None:
    """Exclude the objects of the start from garbage collection, and collect less often.

    A collection of the oldest generation traverses every module, class and function that was ever imported: 10 ms and
    more in which no call is answered. Permanent objects need not be traversed. A busy loop creates and drops a few
    thousand objects per tick, too many for a collection after every 700.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def run(
    classes: Sequence[type[Service]],
    settings: Settings,
    *,
    on_ready: Callable[[Worker], None] | None = None,
    watchdog: Watchdog | None = None,
    canary: bool = False,
) -> int:
    """Run a worker until SIGTERM or SIGINT, which drain it; a second signal ends it at once.

    Args:
        watchdog: watches the loop while it runs, and may request a drain; already started.
        canary: see Worker.

    Returns:
        The exit code: 0 after a clean end, 1 when work was cut off, EXIT_MEMORY when the watchdog requested the drain.

    Raises:
        MeshError: the worker could not start.
    """
    worker = Worker(classes, settings, canary=canary)
    if watchdog is not None:
        worker.entered = watchdog.enter
    stopping = asyncio.Event()
    signals: list[str] = []
    leaving: list[str] = []
    loop = asyncio.get_running_loop()

    def caught(name: str) -> None:
        signals.append(name)
        if len(signals) > 1:
            log.warning("signal.repeated", signal=name, reason="the process ends at once, without a drain")
            os._exit(1)
        stopping.set()

    def leave(reason: str) -> None:
        if not signals:
            leaving.append(reason)
            stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, caught, number.name)
    try:
        starting = asyncio.create_task(worker.start(), name="mesh.start")
        if watchdog is not None:
            watchdog.attach(worker.node.recorder, leave, starting)
        asked = asyncio.create_task(stopping.wait(), name="mesh.stop")
        await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return 0
        asked.cancel()
        starting.result()
        settle_memory()
        worker.entered("ready")
        log.info("worker.ready", worker=worker.identity, services=[type(service).name for service in worker.services])
        if on_ready is not None:
            on_ready(worker)
        await stopping.wait()
        reason = (signals or leaving)[0]
        log.info("worker.draining", worker=worker.identity, reason=reason)
        finished = await worker.drain(reason)
        if leaving:
            return EXIT_MEMORY
        return 0 if finished else 1
    finally:
        await worker.stop()
        if watchdog is not None:
            watchdog.stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        log.info("worker.stopped", worker=worker.identity)

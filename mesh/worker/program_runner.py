"""Runs one program until a signal, its own end, or a reason to replace it.

Owns: signals, which of these comes first, and the exit code.
Leaves to others: the program (program), the watchdog of this process (watchdog), starting another one (supervisor).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Final

from mesh.config import ServiceSettings, Settings
from mesh.policy.liveness import EXIT_START, EXIT_UNHEALTHY
from mesh.telemetry.logs import get_logger
from mesh.worker.program import Program
from mesh.worker.watchdog import Watchdog

log = get_logger("mesh.program")

#: An unhealthy program gets this long to end: it probably hangs, and its requests with it.
UNHEALTHY_STOP_S: Final = 5.0


async def run(
    name: str,
    service: ServiceSettings,
    settings: Settings,
    *,
    limits: Mapping[str, int] | None = None,
    watchdog: Watchdog | None = None,
) -> int:
    """Run a program until SIGTERM or SIGINT, which drain it; a second signal ends it at once.

    Returns:
        The exit code: 0 after a clean end, 1 when the program had to be killed, the program's own code (128 plus the
        number of the signal that ended it) when it ended by itself, or a code of policy.liveness.

    Raises:
        MeshError: it could not be started.
    """
    program = Program(name, service, settings, limits)
    stopping = asyncio.Event()
    signals: list[str] = []
    loop = asyncio.get_running_loop()

    def caught(number: signal.Signals) -> None:
        signals.append(number.name)
        if len(signals) > 1:
            log.warning("signal.repeated", signal=number.name, reason="the process ends at once, without a drain")
            os._exit(1)  # the kernel kills the program
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, caught, number)
    tasks: list[asyncio.Task[object]] = []
    try:
        process = await program.start()
        if watchdog is not None:
            watchdog.attach(program.node.recorder, lambda _: stopping.set(), None)
            watchdog.enter("ready")
        checks = asyncio.create_task(program.checked(), name="mesh.program.health")
        memory = asyncio.create_task(program.exhausted(), name="mesh.program.memory")
        asked = asyncio.create_task(stopping.wait(), name="mesh.stop")
        tasks += [checks, memory, asked]
        await asyncio.wait({checks, memory, asked, process.ended}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        memory.cancel()
        checks.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stop_s = service.stop_timeout_s or settings.worker.stop_timeout_s
        if process.ended.done() and not stopping.is_set():
            log.error("program.ended", program=name, status=process.status, pid=process.pid)
            await program.node.agent.leave(program.instance_id)
            return process.status
        code = _code_of(checks) or _code_of(memory)
        if code in (EXIT_UNHEALTHY, EXIT_START):
            stop_s = min(stop_s, UNHEALTHY_STOP_S)
        reason = signals[0] if signals else "replaced"
        if watchdog is not None:
            watchdog.enter("draining")
        log.info("program.draining", program=name, reason=reason)
        clean = await program.drain(reason, stop_s)
        return code or (0 if clean else 1)
    finally:
        await asyncio.gather(*tasks, return_exceptions=True)
        await program.stop()
        if watchdog is not None:
            watchdog.stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        log.info("program.stopped", program=name, worker=program.identity)


def _code_of(task: asyncio.Task[int]) -> int:
    """The exit code that a task has returned; 0 when it was cancelled.

    Raises:
        Exception: it failed.
    """
    return 0 if task.cancelled() else task.result()

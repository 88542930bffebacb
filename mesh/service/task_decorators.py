"""What a service's author writes over a method that shall surely run: `@task` and `@cron`.

Owns: their options, refused at once when they are nonsense.
Leaves to others: the marks (decorators), reading options (tasks.options, schedules.plan), running them (tasks.runner).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from mesh.calls.declared import BadDeclaration
from mesh.calls.method import Offload
from mesh.schedules.contract import Missed
from mesh.schedules.plan import Cron
from mesh.service.decorators import marks_on, read_expose, schedule
from mesh.tasks.contract import DEFAULT_PRIORITY
from mesh.tasks.options import (
    DEFAULT_BACKOFF,
    DEFAULT_LOST,
    Duration,
    Fatal,
    TaskMark,
    check_priority,
    read_attempts,
    read_seconds,
)

F = TypeVar("F", bound=Callable[..., Any])


@overload
def task(function: F, /) -> F: ...
@overload
def task(
    *,
    retries: int | None = None,
    backoff: Duration = DEFAULT_BACKOFF,
    timeout: Duration | None = None,
    rate: str | float | None = None,
    burst: int | None = None,
    concurrency: int = 0,
    slots: int | None = None,
    lost: int = DEFAULT_LOST,
    keep: Duration | None = None,
    priority: int = DEFAULT_PRIORITY,
    fatal: Fatal = (),
    offload: Offload = "",
    check_result: bool | None = None,
    expose: bool | None = None,
) -> Callable[[F], F]: ...
def task(
    function: F | None = None,
    /,
    *,
    retries: int | None = None,
    backoff: Duration = DEFAULT_BACKOFF,
    timeout: Duration | None = None,
    rate: str | float | None = None,
    burst: int | None = None,
    concurrency: int = 0,
    slots: int | None = None,
    lost: int = DEFAULT_LOST,
    keep: Duration | None = None,
    priority: int = DEFAULT_PRIORITY,
    fatal: Fatal = (),
    offload: Offload = "",
    check_result: bool | None = None,
    expose: bool | None = None,
) -> F | Callable[[F], F]:
    """Let a method be deferred: it runs later, surely, in some instance of its service. It may stand with `@rpc`.

    It runs at least once: a worker that dies in the middle has it run again elsewhere. What it raises has it run again,
    until its retries are used up and it goes to the dead letters; see mesh.Reject and mesh.Retry.

    Args:
        retries: attempts after the first; None takes `tasks.retries`.
        backoff: the wait between attempts: "1s..1m" doubles from one second to a minute, "5s" is always that; chance
            shortens each by up to a half.
        timeout: of one attempt, which is stopped then; None takes `tasks.timeout`.
        rate: attempts begun over the whole mesh: "50/s", "100/m", "10/5s".
        burst: how many of them may begin at once after a pause; a tenth of a second's worth unless given.
        concurrency: attempts at once over the whole mesh; 0 for no limit.
        slots: attempts at once in one worker; None takes `tasks.slots`.
        lost: of so many workers that died while they ran it, the last sends it to the dead letters; from the second on
            it runs alone in its worker, so that it is not counted with one that kills.
        keep: how long a finished job, its answer and its key are kept; None takes `tasks.keep`.
        priority: 0 to 9, of jobs that are deferred without one; what is ready with a higher one goes first.
        fatal: exceptions after which no other attempt is made.
        offload: where a plain `def` runs: in a "thread" (the default) or a "process". Neither can be stopped: a
            timeout or a cancellation ends the attempt, not the computation.
        check_result: whether an answer that is not what the annotation promises is refused; None takes
            `calls.check_results`.
        expose: let anyone who reaches a gateway defer it with POST /tasks/{service}/{task}. None takes the service's
            `expose`, which is False unless its class says otherwise.

    Raises:
        BadDeclaration: an option is not one of these.
    """
    attempts = read_attempts(
        "@task",
        retries=retries,
        backoff=backoff,
        timeout=timeout,
        slots=slots,
        concurrency=concurrency,
        rate=rate,
        burst=burst,
        lost=lost,
        fatal=fatal,
    )
    check_priority("@task: priority", priority)
    if offload not in ("", "thread", "process"):
        raise BadDeclaration(f'@task: offload is "thread" or "process", not {offload!r}')
    keep_s = None if keep is None else read_seconds("@task: keep", keep)
    mark = TaskMark(attempts, keep_s, priority, offload, check_result, read_expose("@task", expose))

    def decorate(target: F) -> F:
        marks = marks_on(target, "@task")
        if marks.task is not None:
            raise BadDeclaration(f"{getattr(target, '__qualname__', target)}: @task stands there twice")
        marks.task = mark
        return target

    return decorate if function is None else decorate(function)


def cron(
    plan: str,
    *,
    tz: str = "UTC",
    missed: Missed = "once",
    retries: int | None = None,
    backoff: Duration | None = None,
    timeout: Duration | None = None,
) -> Callable[[F], F]:
    """Run the method when the time has come, once for the whole mesh: `@cron("0 3 * * *", tz="Asia/Tokyo")`.

    Each due time becomes a task of the method, which takes no arguments. `@task` may stand there too; then the options
    of its attempts are written there.

    Args:
        plan: minute, hour, day of month, month, day of week: `*`, `5`, `1-5`, `1,3`, `*/10`, JAN, MON, L;
            or @hourly, @daily, @weekly, @monthly, @yearly.
        tz: the time zone in which it is meant.
        missed: what to do when no worker was there: run "once" for the last time that was missed, once for "all" of
            them, or "skip" what is later than a minute.
        retries, backoff, timeout: as for `@task`.

    Raises:
        BadDeclaration: the plan or an option is nonsense.
    """
    options = {"retries": retries, "backoff": backoff, "timeout": timeout}
    given = {name: value for name, value in options.items() if value is not None}
    return schedule(f"@cron({plan!r})", Cron(plan, tz), missed, given)

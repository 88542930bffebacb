"""The decorators of durable service methods: `@task` and `@cron`.

Owns: their options, rejected at once when invalid.
Leaves to others: the marks (decorators), reading options (tasks.options, schedules.plan), running them (tasks.runner).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, Unpack, overload

from mesh.calls.declared import BadDeclaration
from mesh.calls.method import Offload
from mesh.schedules.contract import Missed
from mesh.schedules.plan import Cron
from mesh.service.decorators import marks_on, read_expose, schedule
from mesh.service.edge_options import EdgeOptions, read_edge
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
    **edge: Unpack[EdgeOptions],
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
    **edge: Unpack[EdgeOptions],
) -> F | Callable[[F], F]:
    """Declare a background task: a deferred call runs later, in some instance of the service.

    May be combined with `@rpc`. A task runs at least once: when its worker dies, another worker runs it again. An
    attempt that raises is retried until the retries are used up; then the task becomes a dead letter. See mesh.Reject
    and mesh.Retry.

    Args:
        retries: attempts after the first; None uses `tasks.retries`.
        backoff: the wait between attempts: "1s..1m" doubles from one second to a minute, "5s" is constant. Each wait is
            shortened at random by up to a half.
        timeout: of one attempt, which is stopped then; None uses `tasks.timeout`.
        rate: the rate at which attempts may begin over the whole mesh: "50/s", "100/m", "10/5s".
        burst: how many attempts may begin at once after a pause; by default what `rate` allows in a tenth of a second.
        concurrency: attempts at once over the whole mesh; 0 for no limit.
        slots: attempts at once in one worker; None uses `tasks.slots`.
        lost: the number of workers that may die while running the task; the last of these deaths makes it a dead
            letter. After the second, the task runs alone in its worker, so that no crash of another task is counted
            against it.
        keep: how long a finished job, its answer and its key are kept; None uses `tasks.keep`.
        priority: 0 to 9, of jobs that are deferred without a priority; ready jobs with a higher priority run first.
        fatal: exceptions after which the task is not retried.
        offload: where a plain `def` runs: in a "thread" (the default) or a "process". Neither can be stopped: a
            timeout or a cancellation ends the attempt, not the computation.
        check_result: whether an answer that does not match the annotation is rejected; None uses
            `calls.check_results`.
        expose: let anyone who reaches a gateway defer it with POST /tasks/{service}/{task}. None uses the service's
            `expose`, which is False unless its class sets it.
        edge: what gateways do in front of it at /tasks: `auth`, `limit`, `max_body`, `cors`; see `http.EdgeOptions`.

    Raises:
        BadDeclaration: an option has an invalid value.
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
    mark = TaskMark(
        attempts, keep_s, priority, offload, check_result, read_expose("@task", expose), read_edge("@task", edge)
    )

    def decorate(target: F) -> F:
        marks = marks_on(target, "@task")
        if marks.task is not None:
            raise BadDeclaration(f"{getattr(target, '__qualname__', target)}: @task is applied twice")
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
    """Run the method on a schedule, once for the whole mesh: `@cron("0 3 * * *", tz="Asia/Tokyo")`.

    Each due time becomes a task of the method, which takes no arguments. May be combined with `@task`, which then takes
    the options of attempts.

    Args:
        plan: minute, hour, day of month, month, day of week: `*`, `5`, `1-5`, `1,3`, `*/10`, JAN, MON, L;
            or @hourly, @daily, @weekly, @monthly, @yearly.
        tz: the time zone of the plan.
        missed: what to do about due times at which no worker ran: run "once" for the last missed time, once for each of
            "all" missed times, or "skip" those more than a minute late.
        retries, backoff, timeout: as for `@task`.

    Raises:
        BadDeclaration: the plan or an option is invalid.
    """
    options = {"retries": retries, "backoff": backoff, "timeout": timeout}
    given = {name: value for name, value in options.items() if value is not None}
    return schedule(f"@cron({plan!r})", Cron(plan, tz), missed, given)

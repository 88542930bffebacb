"""The decision after an attempt that raised: a retry, and when, or a dead letter.

Owns: the rule, and the exceptions by which a handler decides for itself.
Leaves to others: running attempts (runner), drawing the random number, storing the decision (engines).

The rule: after any exception the task is retried with growing waits until its retries are used up. This includes errors
of other services: a service that cannot be found or reached now may be available a minute later, and `retryable` of an
error is about repeating a call, not about running a task again. A task is not retried when that would be useless: after
Reject, after the exceptions that the decorator lists as `fatal`, and after an answer that cannot be stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mesh.calls.failures import leaves_of
from mesh.calls.results import BadResult
from mesh.errors import ServiceError, TooLarge
from mesh.policy.backoff import Backoff
from mesh.tasks.contract import Reason, Verdict
from mesh.tasks.options import Duration, span


class Reject(ServiceError):
    """Raised by the handler of a task or durable event: it will never succeed. It goes to the dead letters at once.

    ::

        raise mesh.Reject(f"order {order_id} was deleted")
    """

    code = "rejected"
    status = 422


class Retry(ServiceError):
    """Raised by the handler of a task or durable event: try again, after `delay` when given. It counts as an attempt.

    ::

        raise mesh.Retry("the bank is closed", delay="1h")
    """

    code = "retry_asked"
    status = 503

    def __init__(
        self, message: str = "", *, delay: Duration | None = None, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, details=details)
        self.delay_s = None if delay is None else span("mesh.Retry", "delay", delay, zero=True)


class Ruling(NamedTuple):
    """The decision after a failed attempt.

    Attributes:
        delay_s: for "retry": the wait before the next attempt.
    """

    verdict: Verdict
    reason: Reason = ""
    delay_s: float = 0.0


#: Errors after which a retry would end the same way and only repeat the effects outside of the mesh.
USELESS = (Reject, BadResult, TooLarge)


def judge(
    exc: BaseException,
    *,
    failed: int,
    retries: int,
    backoff: Backoff,
    fatal: tuple[type[Exception], ...],
    rnd: float,
) -> Ruling:
    """Apply the rule.

    Args:
        exc: the handler's exception.
        failed: failed tries, this one included (`Lease.tries`).
        rnd: a fresh random number, 0 ≤ rnd < 1.
    """
    # In an exception group (of a TaskGroup) each exception counts: one that makes a retry useless is enough.
    raised = (exc, *leaves_of(exc)) if isinstance(exc, BaseExceptionGroup) else (exc,)
    if any(isinstance(each, USELESS) or (fatal and isinstance(each, fatal)) for each in raised):
        return Ruling("dead", "failed")
    if failed > retries:
        return Ruling("dead", "failed")
    delays = [each.delay_s for each in raised if isinstance(each, Retry) and each.delay_s is not None]
    if delays:
        return Ruling("retry", delay_s=max(delays))
    return Ruling("retry", delay_s=backoff.delay(failed, rnd))

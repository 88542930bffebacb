"""What follows from an attempt that raised: another one, and when, or the dead letters.

Owns: the rule, and what a handler may raise to decide for itself.
Leaves to others: running attempts (runner), drawing the random number, storing what was decided (engines).

The rule: whatever a handler raises, it is tried again with growing waits until its retries are used up. So that holds
for errors of other services, too: who cannot be found or reached now may be there a minute later, and `retryable` of an
error speaks of repeating a call, not of running a task anew. Trying again ends at once for what cannot get better:
Reject, the exceptions that the decorator names as `fatal`, and an answer that cannot be kept.
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
    """What is to become of an attempt.

    Attributes:
        delay_s: before the next one, of "retry".
    """

    verdict: Verdict
    reason: Reason = ""
    delay_s: float = 0.0


#: Errors after which the same attempt would end the same way, its effects outside of the mesh repeated for nothing.
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
    """The rule.

    Args:
        exc: what the handler raised.
        failed: tries that ended badly, this one included (`Lease.tries`).
        rnd: a fresh random number, 0 ≤ rnd < 1.
    """
    # Of a group (a TaskGroup's), each exception counts: what one of them makes useless, all of them do.
    raised = (exc, *leaves_of(exc)) if isinstance(exc, BaseExceptionGroup) else (exc,)
    if any(isinstance(each, USELESS) or (fatal and isinstance(each, fatal)) for each in raised):
        return Ruling("dead", "failed")
    if failed > retries:
        return Ruling("dead", "failed")
    delays = [each.delay_s for each in raised if isinstance(each, Retry) and each.delay_s is not None]
    if delays:
        return Ruling("retry", delay_s=max(delays))
    return Ruling("retry", delay_s=backoff.delay(failed, rnd))

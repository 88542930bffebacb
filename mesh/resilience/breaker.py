"""`breaker`: no calls to a method that fails or is too slow, until it has had time to recover.

Each process has a breaker of its own for each method.
"""

from __future__ import annotations

import math
from typing import Any, Final

from mesh.calls.interceptors import Hook, OutgoingCall, Proceed
from mesh.config.policies import PolicySettings
from mesh.errors import CircuitOpen, MeshError
from mesh.policy.breaker import Breaker, State
from mesh.resilience.contract import Site, is_failure
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.resilience")

#: The value of the gauge for each state.
SHOWN: Final = {State.CLOSED: 0.0, State.HALF_OPEN: 1.0, State.OPEN: 2.0}


def make(policy: PolicySettings, site: Site) -> Hook | None:
    """See contract."""
    if policy.breaker is None and policy.breaker_slow is None:
        return None
    given = {
        "failures": math.inf if policy.breaker is None else policy.breaker,
        "slow": policy.breaker_slow,
        "window_s": policy.breaker_window_s,
        "minimum": policy.breaker_minimum,
        "open_s": policy.breaker_open_s,
        "probes": policy.breaker_probes,
    }
    breaker = Breaker(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    slow_after_s = 1.0 if policy.breaker_slow_after_s is None else policy.breaker_slow_after_s
    target, now = site.target, site.clock.now
    recorder = site.recorder
    recorder.gauge(
        "policy_breaker_state", lambda: SHOWN[breaker.state], "Breakers: 0 closed, 1 half-open, 2 open.", target=target
    )
    recorder.total("policy_breaker_opened", lambda: breaker.opened, "How often breakers opened.", target=target)
    recorder.total("policy_breaker_refused", lambda: breaker.refused, "Calls that breakers refused.", target=target)

    def tell(before: State) -> None:
        if breaker.state is before:
            return
        if breaker.state is State.OPEN:
            _log.warning("breaker.open", target=target, before=before.value)
        elif breaker.state is State.HALF_OPEN:
            _log.info("breaker.half_open", target=target)
        else:
            _log.info("breaker.closed", target=target)

    async def hook(call: OutgoingCall, proceed: Proceed[OutgoingCall]) -> Any:
        before = breaker.state
        began_at = now()
        admission = breaker.admit(began_at)
        tell(before)
        if admission is None:
            wait_s = breaker.wait_s(began_at)
            raise CircuitOpen(
                f"{target}: not called, because its calls failed or were slow; its breaker is {breaker.state.value}",
                details={"retry_after_s": round(wait_s, 3)},
            )
        failed = True
        try:
            answer = await proceed(call)
            failed = False
            return answer
        except MeshError as error:
            failed = is_failure(error)
            raise
        except Exception:
            failed = False  # a mistake in the code around the call
            raise
        except BaseException:
            breaker.abandoned(admission)
            admission = None
            raise
        finally:
            if admission is not None:
                ended_at = now()
                before = breaker.state
                breaker.ended(admission, ended_at, failed=failed, slow=ended_at - began_at >= slow_after_s)
                tell(before)

    return hook

"""The contract of a policy.

Owns: what a policy is made from. Leaves to others: the list of policies and their order (registry).

A policy is a hook like the `outgoing` of an interceptor: `await hook(call, proceed)`. It is made once for each method
that has the setting, so that a method without it pays nothing. `proceed` takes the call, or a copy of it (`call.again`)
for each further attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple, Protocol

from mesh.calls.interceptors import Hook, OutgoingCall
from mesh.clock import Clock
from mesh.config.policies import PolicySettings
from mesh.errors import CircuitOpen, MeshError, RateLimited, Uncertain
from mesh.policy.retry import Failure
from mesh.telemetry.metrics import Counter, Recorder


class Client(Protocol):
    """What policies ask of the client."""

    def is_idempotent(self, target: str) -> bool: ...
    def may_retry(self) -> bool: ...
    def links(self, service: str) -> int: ...


class Site(NamedTuple):
    """Where a policy works.

    Attributes:
        target: "service.method".
        client: of the process.
    """

    target: str
    client: Client
    clock: Clock
    rng: Random
    recorder: Recorder

    def idempotent(self, call: OutgoingCall) -> bool:
        """Whether a call may be made twice: as its caller says, or as its method declares."""
        given = call.options.idempotent
        return self.client.is_idempotent(self.target) if given is None else given

    def counter(self, name: str, help: str) -> Counter:
        """A counter of this method's policy."""
        return self.recorder.counter(f"policy_{name}", help, target=self.target)


#: Makes the hook of a method; None when its settings do not ask for this policy.
Make = Callable[[PolicySettings, Site], Hook | None]


def failure_of(error: MeshError) -> Failure:
    """What an error says about a further attempt."""
    wait_s = error.details.get("retry_after_s", 0.0) if isinstance(error, RateLimited) else 0.0
    # An open breaker refuses at once, so that its callers do not wait.
    passing = error.retryable and error.code != CircuitOpen.code
    return Failure(error.code, passing, isinstance(error, Uncertain), float(wait_s))


def is_failure(error: MeshError) -> bool:
    """Whether an error says that the service is ill: it is not the caller's mistake, and no limit of the caller's."""
    return error.status >= 500

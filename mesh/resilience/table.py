"""The policies of all methods that a process calls.

Owns: what is set for a method by mesh.toml and by the method itself, and the hooks, made once.
Leaves to others: the policies (registry), calls (calls.intercepting), the syntax of settings (config.policies).
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from mesh.calls.interceptors import Hook
from mesh.clock import Clock
from mesh.config.policies import NO_POLICY, PolicySettings, matching, merged
from mesh.discovery.table import Change, Table
from mesh.resilience.contract import Client, Site
from mesh.resilience.registry import hooks_of
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder

_log = get_logger("mesh.resilience")


class Policies:
    """The policies of one process.

    Args:
        tables: of mesh.toml, by pattern.
        registry: the instances that the process knows.
    """

    def __init__(
        self,
        tables: Mapping[str, PolicySettings],
        registry: Table,
        client: Client,
        clock: Clock,
        rng: Random,
        recorder: Recorder,
    ) -> None:
        self._tables = tables
        self._registry = registry
        self._client = client
        self._clock = clock
        self._rng = rng
        self._recorder = recorder
        self._found: dict[str, tuple[PolicySettings, tuple[Hook, ...]]] = {}
        #: What methods declared last: it applies while no instance is registered, too, when it is needed most.
        self._declared: dict[str, PolicySettings] = {}
        #: Whether some method may have a policy.
        self.wanted = bool(tables) or any(_declares(instance) for instance in registry)

    def changed(self, change: Change) -> bool:
        """Take note of a change of the registry; whether some method may have a policy now that none had before."""
        declared = [each for each in (*change.joined, *change.updated) if _declares(each)]
        if self._found and (declared or change.left):
            self._refresh()
        before, self.wanted = self.wanted, self.wanted or bool(declared)
        return self.wanted and not before

    def of(self, target: str) -> PolicySettings:
        """What is set for a method."""
        return self._find(target)[0]

    def hooks(self, target: str) -> tuple[Hook, ...]:
        """The hooks around the calls of a method; () for most."""
        found = self._found.get(target)
        return (self._find(target) if found is None else found)[1]

    def _find(self, target: str) -> tuple[PolicySettings, tuple[Hook, ...]]:
        found = self._found.get(target)
        if found is None:
            policy = self._policy(target)
            found = self._found[target] = policy, self._make(target, policy)
        return found

    def _make(self, target: str, policy: PolicySettings) -> tuple[Hook, ...]:
        if policy is NO_POLICY:
            return ()
        site = Site(target, self._client, self._clock, self._rng, self._recorder)
        try:
            return hooks_of(policy, site)
        except (ValueError, TypeError, OverflowError) as exc:
            # mesh.toml and decorators are checked; a record comes from another process.
            _log.warning("policy.refused", target=target, error=str(exc)[:200])
            own = matching(self._tables, target)
            return hooks_of(merged(own), site) if own else ()

    def _policy(self, target: str) -> PolicySettings:
        policies = matching(self._tables, target)
        service, _, method = target.rpartition(".")
        # The newest record decides between releases, as for all that a method declares.
        for instance in reversed(self._registry.instances(service)):
            record = instance.methods.get(method)
            if record is not None:
                self._declared[target] = record.policy or NO_POLICY
                break
        declared = self._declared.get(target, NO_POLICY)
        if declared is not NO_POLICY:
            policies.append(declared)
        return merged(policies) if policies else NO_POLICY

    def _refresh(self) -> None:
        """Make the hooks anew for the methods with another policy than before. All other breakers stay as they are."""
        self._found = {
            target: (policy, hooks) for target, (policy, hooks) in self._found.items() if self._policy(target) == policy
        }


def _declares(instance: object) -> bool:
    return any(record.policy is not None for record in instance.methods.values())  # type: ignore[attr-defined]

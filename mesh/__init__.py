"""mesh: an asyncio-native ZeroMQ service framework.

Owns: the public API; re-exports only. Names that are not listed here may change between releases.

Each name is imported when it is first used: the command line is a part of this package, and `mesh --help` must not
wait for the import of ZeroMQ.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh import http
    from mesh.calls.answers import Answer, Outcome
    from mesh.calls.context import CallContext, current, scope
    from mesh.calls.interceptors import Delivery, IncomingCall, Interceptor, OutgoingCall
    from mesh.clock import Clock, LoopClock, ManualClock
    from mesh.config import Settings
    from mesh.discovery.record import Instance
    from mesh.errors import (
        BadArguments,
        BadRequest,
        Cancelled,
        CircuitOpen,
        ConfigError,
        Conflict,
        DeadlineExceeded,
        Draining,
        Forbidden,
        JobCancelled,
        JobFailed,
        LeaseLost,
        LinkLost,
        LockLost,
        LockTaken,
        MeshError,
        NotOffered,
        Overloaded,
        RemoteError,
        ServiceError,
        TooLarge,
        TryLater,
        Unauthenticated,
        Unavailable,
        Uncertain,
        UnknownJob,
        UnknownMethod,
        UnknownService,
        Unwritable,
    )
    from mesh.events.event import Event
    from mesh.locks.lock import Held, Lock
    from mesh.node.connect import connect
    from mesh.node.node import Node
    from mesh.service.decorators import every, intercept, on, rpc
    from mesh.service.policy_options import PolicyOptions
    from mesh.service.service import Service
    from mesh.service.task_decorators import cron, task
    from mesh.state.namespace import Namespace
    from mesh.state.values import Value
    from mesh.tasks.canvas import chain, group, prior, step
    from mesh.tasks.context import TaskContext, current_task
    from mesh.tasks.contract import JobInfo
    from mesh.tasks.job import Group, Job
    from mesh.tasks.verdicts import Reject, Retry

__version__ = "0.1.0"

_HOMES = {
    "Answer": "mesh.calls.answers",
    "Outcome": "mesh.calls.answers",
    "CallContext": "mesh.calls.context",
    "current": "mesh.calls.context",
    "scope": "mesh.calls.context",
    "Delivery": "mesh.calls.interceptors",
    "IncomingCall": "mesh.calls.interceptors",
    "Interceptor": "mesh.calls.interceptors",
    "OutgoingCall": "mesh.calls.interceptors",
    "PolicyOptions": "mesh.service.policy_options",
    "Clock": "mesh.clock",
    "LoopClock": "mesh.clock",
    "ManualClock": "mesh.clock",
    "Settings": "mesh.config",
    "Instance": "mesh.discovery.record",
    "BadArguments": "mesh.errors",
    "BadRequest": "mesh.errors",
    "Cancelled": "mesh.errors",
    "CircuitOpen": "mesh.errors",
    "ConfigError": "mesh.errors",
    "Conflict": "mesh.errors",
    "DeadlineExceeded": "mesh.errors",
    "Draining": "mesh.errors",
    "Forbidden": "mesh.errors",
    "JobCancelled": "mesh.errors",
    "JobFailed": "mesh.errors",
    "LeaseLost": "mesh.errors",
    "LinkLost": "mesh.errors",
    "LockLost": "mesh.errors",
    "LockTaken": "mesh.errors",
    "MeshError": "mesh.errors",
    "NotOffered": "mesh.errors",
    "Overloaded": "mesh.errors",
    "RemoteError": "mesh.errors",
    "ServiceError": "mesh.errors",
    "TooLarge": "mesh.errors",
    "TryLater": "mesh.errors",
    "Unauthenticated": "mesh.errors",
    "Unavailable": "mesh.errors",
    "Uncertain": "mesh.errors",
    "UnknownJob": "mesh.errors",
    "UnknownMethod": "mesh.errors",
    "UnknownService": "mesh.errors",
    "Unwritable": "mesh.errors",
    "Event": "mesh.events.event",
    "connect": "mesh.node.connect",
    "every": "mesh.service.decorators",
    "intercept": "mesh.service.decorators",
    "on": "mesh.service.decorators",
    "rpc": "mesh.service.decorators",
    "Node": "mesh.node.node",
    "Service": "mesh.service.service",
    "cron": "mesh.service.task_decorators",
    "task": "mesh.service.task_decorators",
    "chain": "mesh.tasks.canvas",
    "group": "mesh.tasks.canvas",
    "prior": "mesh.tasks.canvas",
    "step": "mesh.tasks.canvas",
    "TaskContext": "mesh.tasks.context",
    "current_task": "mesh.tasks.context",
    "JobInfo": "mesh.tasks.contract",
    "Held": "mesh.locks.lock",
    "Lock": "mesh.locks.lock",
    "Namespace": "mesh.state.namespace",
    "Value": "mesh.state.values",
    "Group": "mesh.tasks.job",
    "Job": "mesh.tasks.job",
    "Reject": "mesh.tasks.verdicts",
    "Retry": "mesh.tasks.verdicts",
}


def __getattr__(name: str) -> Any:
    if name == "http":
        return import_module("mesh.http")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mesh' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "http"})


__all__ = [
    "Answer",
    "BadArguments",
    "BadRequest",
    "CallContext",
    "Cancelled",
    "CircuitOpen",
    "Clock",
    "ConfigError",
    "Conflict",
    "DeadlineExceeded",
    "Delivery",
    "Draining",
    "Event",
    "Forbidden",
    "Group",
    "Held",
    "IncomingCall",
    "Instance",
    "Interceptor",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobInfo",
    "LeaseLost",
    "LinkLost",
    "Lock",
    "LockLost",
    "LockTaken",
    "LoopClock",
    "ManualClock",
    "MeshError",
    "Namespace",
    "Node",
    "NotOffered",
    "Outcome",
    "OutgoingCall",
    "Overloaded",
    "PolicyOptions",
    "Reject",
    "RemoteError",
    "Retry",
    "Service",
    "ServiceError",
    "Settings",
    "TaskContext",
    "TooLarge",
    "TryLater",
    "Unauthenticated",
    "Unavailable",
    "Uncertain",
    "UnknownJob",
    "UnknownMethod",
    "UnknownService",
    "Unwritable",
    "Value",
    "__version__",
    "chain",
    "connect",
    "cron",
    "current",
    "current_task",
    "every",
    "group",
    "http",
    "intercept",
    "on",
    "prior",
    "rpc",
    "scope",
    "step",
    "task",
]

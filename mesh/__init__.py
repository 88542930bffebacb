"""mesh: an asyncio-native ZeroMQ service framework.

Owns: the public face; re-exports only. What is not named here may change between releases.

Each name is imported when it is first used: the command line is a part of this package, and `mesh --help` shall not
wait for ZeroMQ.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.calls.answers import Answer, Outcome
    from mesh.calls.context import CallContext, current
    from mesh.clock import Clock, LoopClock, ManualClock
    from mesh.config import Settings
    from mesh.discovery.record import Instance
    from mesh.errors import (
        BadArguments,
        BadRequest,
        Cancelled,
        ConfigError,
        DeadlineExceeded,
        Draining,
        LinkLost,
        MeshError,
        Overloaded,
        RemoteError,
        ServiceError,
        TooLarge,
        TryLater,
        Unavailable,
        Uncertain,
        UnknownMethod,
        UnknownService,
    )
    from mesh.events.event import Event
    from mesh.service.connect import connect
    from mesh.service.decorators import every, http, on, rpc
    from mesh.service.node import Node
    from mesh.service.service import Service

__version__ = "0.1.0"

_HOMES = {
    "Answer": "mesh.calls.answers",
    "Outcome": "mesh.calls.answers",
    "CallContext": "mesh.calls.context",
    "current": "mesh.calls.context",
    "Clock": "mesh.clock",
    "LoopClock": "mesh.clock",
    "ManualClock": "mesh.clock",
    "Settings": "mesh.config",
    "Instance": "mesh.discovery.record",
    "BadArguments": "mesh.errors",
    "BadRequest": "mesh.errors",
    "Cancelled": "mesh.errors",
    "ConfigError": "mesh.errors",
    "DeadlineExceeded": "mesh.errors",
    "Draining": "mesh.errors",
    "LinkLost": "mesh.errors",
    "MeshError": "mesh.errors",
    "Overloaded": "mesh.errors",
    "RemoteError": "mesh.errors",
    "ServiceError": "mesh.errors",
    "TooLarge": "mesh.errors",
    "TryLater": "mesh.errors",
    "Unavailable": "mesh.errors",
    "Uncertain": "mesh.errors",
    "UnknownMethod": "mesh.errors",
    "UnknownService": "mesh.errors",
    "Event": "mesh.events.event",
    "every": "mesh.service.decorators",
    "http": "mesh.service.decorators",
    "on": "mesh.service.decorators",
    "rpc": "mesh.service.decorators",
    "Node": "mesh.service.node",
    "connect": "mesh.service.connect",
    "Service": "mesh.service.service",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mesh' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


__all__ = [
    "Answer",
    "BadArguments",
    "BadRequest",
    "CallContext",
    "Cancelled",
    "Clock",
    "ConfigError",
    "DeadlineExceeded",
    "Draining",
    "Event",
    "Instance",
    "LinkLost",
    "LoopClock",
    "ManualClock",
    "MeshError",
    "Node",
    "Outcome",
    "Overloaded",
    "RemoteError",
    "Service",
    "ServiceError",
    "Settings",
    "TooLarge",
    "TryLater",
    "Unavailable",
    "Uncertain",
    "UnknownMethod",
    "UnknownService",
    "__version__",
    "connect",
    "current",
    "every",
    "http",
    "on",
    "rpc",
]

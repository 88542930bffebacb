"""mesh: an asyncio-native ZeroMQ service framework.

Owns: the public face; re-exports only. What is not named here may change between releases.
"""

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
from mesh.service.decorators import every, http, on, rpc
from mesh.service.node import Node, connect
from mesh.service.service import Service

__version__ = "0.1.0"

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

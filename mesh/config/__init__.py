"""Settings: one tree from mesh.toml, the environment and flags.

Owns: nothing itself; re-exports the tree (config.settings) and its reading (config.load).
"""

from mesh.config.load import FILE_NAME, Origin, find_file, load, origins
from mesh.config.settings import (
    CallSettings,
    DiscoverySettings,
    GatewaySettings,
    LinkSettings,
    LogSettings,
    MeshSettings,
    ServiceSettings,
    Settings,
    WorkerSettings,
)

__all__ = [
    "FILE_NAME",
    "CallSettings",
    "DiscoverySettings",
    "GatewaySettings",
    "LinkSettings",
    "LogSettings",
    "MeshSettings",
    "Origin",
    "ServiceSettings",
    "Settings",
    "WorkerSettings",
    "find_file",
    "load",
    "origins",
]

"""Settings: one tree from mesh.toml, the environment and flags.

Re-exports the tree (config.settings) and the functions that read it (config.load).
"""

from mesh.config.access import OPERATOR, AccessRule, AccessSettings, ServeRule
from mesh.config.load import FILE_NAME, FILE_VARIABLE, Usable, find_file, load, origins, project_root, usable
from mesh.config.origins import Origin
from mesh.config.settings import (
    AutoscaleSettings,
    CallSettings,
    DiscoverySettings,
    GatewaySettings,
    KeySettings,
    LinkSettings,
    LogSettings,
    MeshSettings,
    ServiceSettings,
    Settings,
    WorkerSettings,
)
from mesh.config.trust import check_found

__all__ = [
    "FILE_NAME",
    "FILE_VARIABLE",
    "OPERATOR",
    "AccessRule",
    "AccessSettings",
    "AutoscaleSettings",
    "CallSettings",
    "DiscoverySettings",
    "GatewaySettings",
    "KeySettings",
    "LinkSettings",
    "LogSettings",
    "MeshSettings",
    "Origin",
    "ServeRule",
    "ServiceSettings",
    "Settings",
    "Usable",
    "WorkerSettings",
    "check_found",
    "find_file",
    "load",
    "origins",
    "project_root",
    "usable",
]

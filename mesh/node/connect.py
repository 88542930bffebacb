"""Joining the mesh as a client.

Owns: `connect`. Leaves to others: the node (node), settings (config).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mesh import config, ids
from mesh.calls.checks import Duration, seconds
from mesh.calls.interceptors import Interceptor
from mesh.config import Settings
from mesh.node.node import Node


@asynccontextmanager
async def connect(
    settings: Settings | None = None,
    *,
    path: Path | None = None,
    hubs: Sequence[str] | None = None,
    flags: Mapping[str, Any] | None = None,
    wait_s: Duration = 2.0,
    role: str = "client",
    interceptors: Sequence[Interceptor] = (),
) -> AsyncIterator[Node]:
    """Join the mesh as a client: `async with mesh.connect() as n: await n.call("greeting.hello", "x")`.

    Args:
        settings: loaded settings; None reads mesh.toml, found from the current directory upwards, and the environment.
        path: the mesh.toml to read instead.
        hubs: endpoints of hubs, instead of the configured ones.
        flags: dotted keys and values that override file and environment.
        wait_s: how long to wait for a hub to answer. After that the node works without a hub: calls wait for one until
            their deadline.
        role: the role of the process, which decides its key and which access rules apply to it. Commands of operators
            have the role "operator".
        interceptors: around the calls of this process, inside of those of mesh.toml. See docs/interceptors.md.

    Raises:
        ConfigError: a key or value is wrong; the message names the line.
        SetupError: an interceptor of mesh.toml cannot be imported.
    """
    if settings is None:
        wanted = dict(flags or {})
        if hubs is not None:
            wanted["mesh.hubs"] = list(hubs)
        settings = config.load(path, flags=wanted)
    node = Node(settings, identity=ids.instance_id(role), interceptors=interceptors)
    try:
        await node.start(seconds("connect", "wait_s", wait_s))
        await node.interceptors.start(node)
        yield node
    finally:
        await node.interceptors.stop()
        await node.close()

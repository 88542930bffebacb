"""Gateways with proxy routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from gateway_fakes import FakeNode
from gateway_front import Front, open_front
from proxy_upstream import Open, Upstream, serving

from mesh.config import Settings
from mesh.config.edge_proxy import PROXIES
from mesh.gateway.server import Gateway


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    found = Upstream()
    async with serving(found):
        yield found


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


@pytest.fixture
def opened(settings: Settings, stack: AsyncExitStack, node: FakeNode) -> Open:
    """Makes a gateway with proxy routes."""

    async def make(proxy: dict[str, Any], **limits: Any) -> Front:
        own = msgspec.structs.replace(settings.gateway, proxy=PROXIES.read(proxy), **limits)
        gateway = Gateway(node, msgspec.structs.replace(settings, gateway=own))
        return await open_front(stack, node, gateway)

    return make


@pytest.fixture
async def proxy(opened: Open, upstream: Upstream) -> Front:
    return await opened(
        {
            "/old": {"to": upstream.url, "max_body": "1GiB"},
            "/cut": {"to": upstream.url, "strip": True, "rewrite": True, "host": "upstream"},
            "/hasty": {"to": upstream.url, "timeout": "200ms", "idle_timeout": "200ms", "max_body": "100B"},
        }
    )

"""Hosts on a network of their own; see host_network."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .host_network import Network, missing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def hosts_can_be_made() -> None:
    """Skips, by name, where this machine lacks something; MESH_REQUIRE_HOSTS=1 makes that a failure."""
    if why := missing():
        if os.environ.get("MESH_REQUIRE_HOSTS") == "1":
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture(scope="module")
def bare_network(hosts_can_be_made: None) -> Iterator[Network]:
    """Hosts made on it have Debian's /usr, and nothing of this project."""
    network = Network()
    try:
        yield network
    finally:
        network.close()


@pytest.fixture(scope="module")
def network(hosts_can_be_made: None) -> Iterator[Network]:
    """Hosts made on it can read this project and the Python that runs it."""
    network = Network(share=[ROOT, Path(sys.prefix), Path(sys.base_prefix)])
    try:
        yield network
    finally:
        network.close()

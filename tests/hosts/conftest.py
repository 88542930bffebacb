"""Hosts on a network of their own; see host_network. Deploying to them; see deploy_fleet."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.deploy_project import ansible_missing

from .deploy_fleet import Fleet, wrk_missing
from .host_login import admit, sudo_missing
from .host_network import Network, missing
from .host_systemd import SystemdHost, systemd_missing

ROOT = Path(__file__).parents[2]


def require(why: str) -> None:
    """Skips, by name, where this machine lacks something; MESH_REQUIRE_HOSTS=1 makes that a failure."""
    if why and os.environ.get("MESH_REQUIRE_HOSTS") == "1":
        pytest.fail(why)
    if why:
        pytest.skip(why)


@pytest.fixture(scope="session")
def hosts_can_be_made() -> None:
    require(missing())


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


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """Two bare hosts; the wheels for them are on this machine already. Those that were built stay in pytest's cache."""
    require(missing() or ansible_missing() or wrk_missing())
    network: Network = request.getfixturevalue("bare_network")
    return Fleet(network, built(request), [network.host("a"), network.host("b")])


@pytest.fixture(scope="module")
def under_systemd(request: pytest.FixtureRequest) -> Fleet:
    """One bare host whose first process is systemd."""
    require(missing() or ansible_missing() or systemd_missing())
    network: Network = request.getfixturevalue("bare_network")
    return Fleet(network, built(request), [network.host("a", SystemdHost)])


@pytest.fixture(scope="module")
def by_sudo(request: pytest.FixtureRequest) -> Fleet:
    """One bare host that nobody but `deployer` can log in to, who becomes root by sudo."""
    require(missing() or ansible_missing() or sudo_missing())
    network: Network = request.getfixturevalue("bare_network")
    host = network.host("a")
    admit(host, "deployer")
    # Directories above it are made as well, and the mesh's user has to pass through them.
    return Fleet(network, built(request), [host], login="deployer", prefix="/srv/apps/mesh")


def built(request: pytest.FixtureRequest) -> Path:
    """Where wheels are kept from one run of the tests to the next."""
    return Path(request.config.cache.mkdir("deploy"))  # type: ignore[union-attr]

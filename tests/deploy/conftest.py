"""Deploying with the project's own playbooks: to a directory of this machine, on a free port, as nobody but oneself."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .deploy_project import Deployment, ansible_missing


@pytest.fixture(scope="session")
def ansible() -> None:
    """Skips, by name, where Ansible is not installed; MESH_REQUIRE_HOSTS=1 makes that a failure."""
    if why := ansible_missing():
        if os.environ.get("MESH_REQUIRE_HOSTS") == "1":
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture(scope="module")
def deployment(ansible: None, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """Nothing is deployed yet. Wheels that were built stay in pytest's cache."""
    # Not pytest's tmp_path: a unix socket's path has room for 107 characters.
    root = Path(tempfile.mkdtemp(prefix="mesh-"))
    made = Deployment(root, request.config.cache.mkdir("deploy"))  # type: ignore[union-attr]
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(root)

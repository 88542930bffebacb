"""A set under a real supervisord: one for each test that breaks it, or one for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from supervision_project import Made, Project
from supervision_releases import Releases, free_port


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project that is taken down again whatever the test did to it."""
    with Made(monkeypatch) as made:
        yield made


@pytest.fixture(scope="module")
def running() -> Iterator[Project]:
    """One set for all tests of a file: two greetings, one gateway. A test leaves it as it was."""
    patch = pytest.MonkeyPatch()
    try:
        with Made(patch) as made:
            made.up()
            yield made
    finally:
        patch.undo()


@pytest.fixture
def releases(project: Project) -> Releases:
    """Releases side by side, of which the first one runs."""
    project.write(greetings=1)
    made = Releases(project)
    made.make("1", {"mesh": {"hubs": [f"tcp://127.0.0.1:{free_port()}"]}})
    made.up()
    return made

"""Which tests run, and in which order: the longest first, so that processes that run them side by side end together."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# A test that takes long on a busy machine is no failure: pytest-timeout ends what hangs.
settings.register_profile("mesh", deadline=None)
settings.load_profile("mesh")

# A shell that runs the tests in the background lets them ignore Ctrl-C, and so do all processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Directories whose tests take minutes.
LONG = ("hosts", "deploy", "supervision")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        room = item.path.parent.name
        return LONG.index(room) if room in LONG else len(LONG)

    items.sort(key=place)
    if os.environ.get("MESH_CHAOS") != "long":
        skip = pytest.mark.skip(reason="long: `make chaos` runs it")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)

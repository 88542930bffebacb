"""Hypothesis settings of this directory, and one open link."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from protocol_script import Script

# Derandomized: a run is the same on every machine. MESH_FUZZ_SECONDS runs the searching variants (test_protocol_fuzz,
# test_protocol_interleavings) from fresh seeds, which they print.
settings.register_profile(
    "mesh-protocol",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("mesh-protocol")


@pytest.fixture
def script() -> Script:
    """A caller and a callee whose link is open and quiet."""
    script = Script()
    script.play(
        """
        caller | connected
        callee | connected
        callee | hears hello
        caller | hears welcome
        """
    )
    return script


@pytest.fixture
def fresh() -> Script:
    """A caller and a callee that have not met."""
    return Script()

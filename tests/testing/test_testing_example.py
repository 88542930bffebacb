"""What the documentation of mesh.testing shows is true."""

from __future__ import annotations

import doctest
import sys

import mesh.testing


def test_the_example_runs_as_it_is_printed():
    """Every line of it, with its output."""
    before = dict(vars(mesh.testing))
    results = doctest.testmod(sys.modules["mesh.testing"])
    assert results.attempted >= 8
    assert results.failed == 0
    assert vars(mesh.testing).keys() == before.keys()

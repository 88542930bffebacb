"""Stops the parallel parts of a roll, at their next step, when one part has failed.

Owns: the signal. Leaves to others: the steps (replicas, static_programs), and going back (roll).
"""

from __future__ import annotations


class Halted(Exception):
    """Another part has failed; this one has stopped between two steps."""


class Halt:
    """The stop signal that all parts of a roll share."""

    def __init__(self) -> None:
        self.called = False

    def call(self) -> None:
        """Stop all parts at their next step."""
        self.called = True

    def check(self) -> None:
        """Raises:
        Halted: `call` was called.
        """
        if self.called:
            raise Halted

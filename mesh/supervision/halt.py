"""Stopping, at their next step, those who work side by side with one that failed.

Owns: that word. Leaves to others: what a step is (copies, standing), and what comes afterwards (roll).
"""

from __future__ import annotations


class Halted(Exception):
    """Another part has failed; this one has stopped between two steps."""


class Halt:
    """One word for all parts of a roll."""

    def __init__(self) -> None:
        self.called = False

    def call(self) -> None:
        """Say it."""
        self.called = True

    def check(self) -> None:
        """Raises:
        Halted: it was said.
        """
        if self.called:
            raise Halted

"""The trace that a command begins, so that `mesh logs --trace` finds everything that it caused.

Owns: the option that shows the trace. Leaves to others: propagating it (calls, tasks, events), and finding it (logs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def trace_option(function: F) -> F:
    """`-v`, as the parameter `verbose`."""
    option = click.option("-v", "--verbose", is_flag=True, help="Show the id of its trace, for `mesh logs --trace ID`.")
    return option(function)


def begin(verbose: bool) -> None:
    """Begin a trace for all requests of this command; with `verbose`, print its id to stderr."""
    from mesh.cli.output import note
    from mesh.telemetry import traces

    trace = traces.root()
    traces.current.set(trace)
    if verbose:
        note(f"trace {trace[3:35]}")

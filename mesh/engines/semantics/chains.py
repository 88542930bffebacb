"""Tasks of one unit that wait for each other: the rules that are the same for every engine. Pure.

Owns: checking that `feeds` and `waits` are consistent, and which tasks are not made because a known job replaces them.
Leaves to others: passing answers on, and handling failures (each engine).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence

from mesh.errors import BadRequest
from mesh.tasks.contract import NewTask


def check_feeds(tasks: Sequence[NewTask]) -> None:
    """Raises:
    BadRequest: a task feeds one that does not follow it in this unit, or `waits` is not the number that feed it.
    """
    fed: Counter[str] = Counter()
    for task in tasks:
        if task.waits != fed[task.id]:
            raise BadRequest(
                f"task {task.id} of {task.queue} waits for {task.waits} other tasks, but {fed[task.id]} earlier "
                "tasks of its unit name it as their next task"
            )
        fed.pop(task.id, None)
        if task.feeds:
            if task.key:
                raise BadRequest(
                    f"task {task.id} of {task.queue} precedes another task and has the key {task.key!r}: "
                    "only the last task of a chain or group may have a key"
                )
            fed[task.feeds] += 1
    if left := next((id for id, count in fed.items() if count), None):
        raise BadRequest(f"task {left} is the next task of another one, but does not follow it in the same unit")


def not_made(tasks: Sequence[NewTask], known: Container[str]) -> set[str]:
    """The unknown tasks that feed a known one, directly or through others."""
    dropped: set[str] = set()
    for task in reversed(tasks):
        if task.feeds and task.id not in known and (task.feeds in known or task.feeds in dropped):
            dropped.add(task.id)
    return dropped

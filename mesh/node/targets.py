"""Finds the target of a deferred task: by the method itself, or by its name.

Owns: finding the class of a method, and the registry's record of a name.
Leaves to others: types (describe), deferring (tasks.deferring).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from mesh.calls.answers import typed_decoder
from mesh.calls.checks import split_target
from mesh.config.settings import TaskSettings
from mesh.discovery.record import Instance, TaskRecord
from mesh.discovery.share import declaring
from mesh.errors import BadArguments
from mesh.service.decorators import marks_of
from mesh.service.describe import typed
from mesh.service.service import Service
from mesh.suggest import suggestion
from mesh.tasks.deferring import Target
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.tasks")

#: The maximum number of cached task names; when it is exceeded, the cache is cleared. Names may come from requests.
MOST_NAMES: Final = 10_000


class Known(Protocol):
    """The part of discovery's Table that is used here."""

    version: int

    def instances(self, service: str) -> Any: ...


class Targets:
    """The targets of the tasks that one process defers."""

    def __init__(self, table: Known | None, settings: TaskSettings) -> None:
        self._table = table
        self._settings = settings
        self._version = -1
        self._by_name: dict[str, Target] = {}
        self._by_method: WeakKeyDictionary[type[Service], dict[str, Target]] = WeakKeyDictionary()
        self._told: set[str] = set()

    def find(self, task: Any) -> Target:
        """The target of a task.

        Args:
            task: `self.charge`, `Orders.charge`, or "orders.charge".

        Raises:
            BadRequest: `task` is none of these; the message shows the correct form.
        """
        if isinstance(task, str):
            return self._named(task)
        owner = getattr(task, "__self__", None)
        if isinstance(owner, Service):
            return self._of(type(owner), task.__func__)
        if inspect.isfunction(task):
            return self._of(_owner(task), task)
        raise BadArguments(
            f"{_shown(task)} is not a task: pass the method itself (self.charge, Orders.charge) or its name "
            '("orders.charge")'
        )

    # --- by the method ------------------------------------------------------------------------------------

    def _of(self, cls: type[Service], function: Callable[..., Any]) -> Target:
        known = self._by_method.get(cls)
        if known is None:
            known = self._by_method[cls] = {}
        target = known.get(function.__name__)
        if target is None:
            target = known[function.__name__] = self._read(cls, function)
        return target

    def _read(self, cls: type[Service], function: Callable[..., Any]) -> Target:
        name = function.__name__
        for member, signature in typed(cls):
            if member.name == name and member.task is not None:
                queue = f"{cls.name}.{name}"
                keep_s = self._settings.keep_s if member.task.keep_s is None else member.task.keep_s
                decode = typed_decoder(queue, signature.returns)
                return Target(queue, signature.decode_args, decode, keep_s, member.task.priority)
        raise BadArguments(f"{cls.__qualname__}.{name} is not marked @task: it cannot be deferred")

    # --- by its name --------------------------------------------------------------------------------------

    def _named(self, name: str) -> Target:
        table = self._table
        if table is not None and table.version != self._version:
            self._version = table.version
            self._by_name.clear()
        target = self._by_name.get(name)
        if target is None:
            if len(self._by_name) >= MOST_NAMES:
                self._by_name.clear()
            target = self._by_name[name] = self._look_up(name)
        return target

    def _look_up(self, name: str) -> Target:
        service, task = split_target(name)
        instances: list[Instance] = list(self._table.instances(service)) if self._table is not None else []
        # Newest first: its release may have added the task, or changed its `keep`.
        for instance in reversed(declaring(instances)):
            record: TaskRecord | None = instance.tasks.get(task)
            if record is not None:
                keep_s = self._settings.keep_s if record.keep_s is None else record.keep_s
                return Target(name, keep_s=keep_s, priority=record.priority)
        if instances and name not in self._told and len(self._told) < MOST_NAMES:
            # Accept it: a release with this task may be starting. If none comes, the engine makes it a dead letter.
            self._told.add(name)
            declared = sorted({known for instance in instances for known in instance.tasks})
            hint = suggestion(task, declared, "" if declared else "it declares no tasks")
            log.warning("task.undeclared", task=name, reason=f"no instance of the service declares this task{hint}")
        return Target(name, keep_s=self._settings.keep_s)


def _owner(function: Callable[..., Any]) -> type[Service]:
    """The class that a plain function was defined in, according to its marks.

    Raises:
        BadArguments: it is not a marked method of a service, or belongs to several services.
    """
    marks = marks_of(function)
    owners: list[type[Service]] = [] if marks is None else [cls for ref in marks.owners if (cls := ref()) is not None]
    if len(owners) == 1:
        return owners[0]
    if not owners:
        raise BadArguments(f"{_shown(function)} is not a task: mark a method of a service with @task")
    raise BadArguments(
        f"{_shown(function)} is a task of several services ({', '.join(cls.name for cls in owners)}): "
        "pass self.METHOD, or the name of the task"
    )


def _shown(task: Any) -> str:
    return str(getattr(task, "__qualname__", None) or repr(task))[:100]

"""The history of a run: what each process asked for, when, and what it was told.

A history is a file of JSON lines, one `Event` each. Instants are CLOCK_MONOTONIC, which all processes of one host
share. An operation is written down before it is sent, so that one whose process is killed is known to be open.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

#: Verbs that change nothing: what became of one without an answer is of no interest.
QUESTIONS: Final = ("read", "sums")

#: invoke: about to be sent · ok: done · conflict: refused, because something is not as the request assumes · fail:
#: certainly not done · info: ambiguous, it may or may not have been done · touch: a holder acts under its lock · end:
#: a holder has let go · fault: the nemesis acted · final: what is stored after everything has stopped · barrier: no
#: operation that is still open can take effect any more.
Kind = Literal["invoke", "ok", "conflict", "fail", "info", "touch", "end", "fault", "final", "barrier", "exit"]

NEVER: Final = math.inf


class Event(msgspec.Struct, omit_defaults=True):
    """One line of a history.

    Attributes:
        at: seconds of CLOCK_MONOTONIC.
        op: the operation that it belongs to; "" for none.
        do: the verb, with `invoke` and `final`.
        value: the argument of an `invoke`, the answer of an `ok`.
        error: code of the error that ended it.
    """

    at: float
    kind: Kind
    op: str = ""
    do: str = ""
    key: str = ""
    value: Any = None
    error: str = ""


class Operation(msgspec.Struct):
    """An operation from its invocation to its end.

    Attributes:
        status: "info" also when nothing more was heard of it.
        ended_at: NEVER while it is ambiguous.
        touches: instants at which a lock's holder acted under it; `let_go_at`: when it stopped doing so.
    """

    id: str
    do: str
    key: str
    value: Any
    began_at: float
    ended_at: float = NEVER
    status: Literal["ok", "conflict", "fail", "info"] = "info"
    result: Any = None
    error: str = ""
    touches: list[float] = []
    let_go_at: float = NEVER


class History(msgspec.Struct):
    """All of a run.

    Attributes:
        final: verb -> what was stored at the end.
        faults: what the nemesis did, by kind and target.
        exits: processes that ended although nothing had ended them: name and reason.
        barrier_at: see Kind.
    """

    operations: list[Operation]
    final: dict[str, Any] = {}
    faults: list[Event] = []
    exits: list[Event] = []
    barrier_at: float = NEVER

    def by_verb(self, *verbs: str) -> list[Operation]:
        """The operations with these verbs, in the order of their invocations."""
        return [operation for operation in self.operations if operation.do in verbs]

    def by_key(self, *verbs: str) -> dict[str, list[Operation]]:
        """The operations with these verbs, by key."""
        found: dict[str, list[Operation]] = {}
        for operation in self.by_verb(*verbs):
            found.setdefault(operation.key, []).append(operation)
        return found


class Recorder:
    """Writes events to a file of its own. What has been written survives the death of the process."""

    def __init__(self, path: Path, name: str) -> None:
        """`name` begins the ids of operations; no other recorder of the run may have it."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._name = name
        self._count = itertools.count(1)
        self._encode = msgspec.json.Encoder().encode

    def write(self, event: Event) -> None:
        os.write(self._file, self._encode(event) + b"\n")

    def begin(self, do: str, key: str, value: Any = None) -> str:
        """An operation is about to be sent; its id."""
        op = f"{self._name}-{next(self._count)}"
        self.write(Event(time.monotonic(), "invoke", op, do, key, value))
        return op

    def end(self, op: str, kind: Kind, value: Any = None, error: str = "") -> None:
        self.write(Event(time.monotonic(), kind, op, value=value, error=error))

    def write_touch(self, op: str, at: float) -> None:
        """A holder acted under its lock."""
        self.write(Event(at, "touch", op))

    def close(self) -> None:
        os.close(self._file)


def read_events(path: Path) -> Iterator[Event]:
    """The events of one file; a last line that was torn by a death is left out."""
    decode = msgspec.json.Decoder(Event).decode
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield decode(line)


def assemble(events: Iterable[Event]) -> History:
    """Put operations together. The events may come in any order."""
    history = History([])
    open_: dict[str, Operation] = {}
    for event in sorted(events, key=lambda event: event.at):
        operation = open_.get(event.op)
        if event.kind == "invoke":
            made = Operation(event.op, event.do, event.key, event.value, event.at)
            if event.do in QUESTIONS:
                made.status = "fail"
            open_[event.op] = made
            history.operations.append(made)
        elif event.kind == "fault":
            history.faults.append(event)
        elif event.kind == "exit":
            history.exits.append(event)
        elif event.kind == "final":
            history.final[event.do] = event.value
        elif event.kind == "barrier":
            history.barrier_at = event.at
        elif operation is None:
            continue
        elif event.kind == "touch":
            operation.touches.append(event.at)
        elif event.kind == "end":
            operation.let_go_at = event.at
        else:
            operation.status = event.kind
            operation.result, operation.error = event.value, event.error
            operation.ended_at = NEVER if event.kind == "info" else event.at
    return history

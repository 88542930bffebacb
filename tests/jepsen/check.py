"""Judge a recorded history: `python -m tests.jepsen.check history.jsonl`. Exit code 0 when every promise held."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from . import promises, register
from .history import NEVER, History, Operation, assemble, read_events
from .promises import Violation

#: Violations shown; all are counted.
SHOWN: Final = 20
REGISTER: Final = ("read", "set", "delete", "swap")


@dataclass
class Report:
    """Attributes:
    outcomes: (verb, status) -> how many operations.
    happened, not_happened: ambiguous operations that the history proves to have taken effect, or not to.
    undecided: keys whose search was given up.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    happened: int = 0
    not_happened: int = 0
    undecided: list[str] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    took_s: float = 0.0

    @property
    def operations(self) -> int:
        return sum(self.outcomes.values())

    def count(self, status: str) -> int:
        return sum(count for (_, each), count in self.outcomes.items() if each == status)

    @property
    def resolved(self) -> int:
        return self.happened + self.not_happened

    @property
    def ok(self) -> bool:
        return not self.violations and not self.undecided

    def table(self) -> str:
        """The summary, and the first violations."""
        verbs = sorted({verb for verb, _ in self.outcomes})
        columns = ("ok", "conflict", "fail", "info")
        lines = [f"{'operation':<12}{'all':>9}{'ok':>9}{'conflict':>10}{'fail':>8}{'ambiguous':>11}"]
        for name in (*verbs, "all"):
            of = [self.count(each) if name == "all" else self.outcomes[name, each] for each in columns]
            lines.append(f"{name:<12}{sum(of):>9}{of[0]:>9}{of[1]:>10}{of[2]:>8}{of[3]:>11}")
        lines.append(
            f"ambiguous, resolved: {self.resolved} ({self.happened} happened, {self.not_happened} did not); "
            f"open: {self.count('info') - self.resolved}"
        )
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())) or "none"
        lines.append(f"faults: {faults}")
        kinds = Counter(each.kind for each in self.violations)
        lines.append("violations: " + (", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "0"))
        lines += [f"  {each.kind}: {each.text}" for each in self.violations[:SHOWN]]
        if self.undecided:
            lines.append(f"undecided keys: {', '.join(self.undecided[:SHOWN])}")
        lines.append(f"{self.operations} operations in {self.seconds:.0f} s, checked in {self.took_s:.1f} s")
        return "\n".join(lines)


def judge(history: History) -> Report:
    """Check everything that the history can show."""
    began_at = time.monotonic()
    report = Report()
    report.outcomes.update((each.do, each.status) for each in history.operations)
    report.faults.update(f"{each.do} {each.value or ''}".strip() for each in history.faults)
    if history.operations:
        report.seconds = history.operations[-1].began_at - history.operations[0].began_at
    found = report.violations
    found += promises.exits(history)
    for key, operations in history.by_key(*REGISTER).items():
        _register(report, key, operations, history.barrier_at)
    for operations in history.by_key("lock").values():
        found += promises.locks(operations)
    for key, operations in history.by_key("swap").items():
        if key.startswith("guard/"):
            found += promises.fences(operations)
    final = history.final
    if final:
        found += promises.tasks(
            map(_as_task, history.by_verb("defer", "guarded", "ordered")), final["done"], final["dead"]
        )
        for verb in ("emit", "ordered"):
            for key, operations in history.by_key(verb).items():
                found += promises.order(operations, final[verb].get(key, []))
        money = history.by_verb("defer", "transfer", "sums")
        found += promises.ledger(money, final["entries"], final["balances"])
        _resolve_by_what_is_stored(report, history)
    report.took_s = time.monotonic() - began_at
    return report


def _register(report: Report, key: str, operations: list[Operation], barrier_at: float) -> None:
    report.violations += promises.etags(operations)
    steps = register.steps(operations, barrier_at)
    verdict = register.check(steps)
    if verdict.ok is None:
        report.undecided.append(key)
        return
    if not verdict.ok:
        failed = verdict.failed
        assert failed is not None
        held = ", ".join(map(repr, verdict.values[:5]))
        wanted = failed.value if failed.verb == "read" else failed.expected
        report.violations.append(
            Violation(
                "not linearizable",
                f"{key}: {failed.id} ({failed.verb} {wanted!r}) at {failed.ended_at:.3f}; it can have held {held}",
            )
        )
        return
    last = barrier_at if barrier_at < NEVER else max(step.began_at for step in steps)
    resolution = register.resolve(steps, last)
    report.happened += len(resolution.happened)
    report.not_happened += len(resolution.not_happened)


def _as_task(operation: Operation) -> Operation:
    """With the task's key; a place in a row is a part of it."""
    if operation.do != "ordered":
        return operation
    return msgspec.structs.replace(operation, key=f"{operation.key}/{operation.value}")


def _resolve_by_what_is_stored(report: Report, history: History) -> None:
    """Each key, entry and event is known by a name of its own: whether it is there says whether it happened."""
    jobs = {key for key, _ in history.final["done"]}
    entries = set(history.final["entries"])
    heard = {
        (verb, key, value)
        for verb in ("emit", "ordered")
        for key, values in history.final[verb].items()
        for value in values
    }
    confirmed = {(each.do, each.key, str(each.value)) for each in history.operations if each.status == "ok"}
    for each in history.operations:
        if each.status != "info" or each.do not in ("defer", "guarded", "transfer", "emit", "ordered"):
            continue
        if (each.do, each.key, str(each.value)) in confirmed:
            continue  # it was repeated under the same name: which of the two did it is not to be seen
        if each.do in ("defer", "guarded"):
            there = each.key in jobs
        elif each.do == "transfer":
            there = each.key in entries
        else:
            there = (each.do, each.key, each.value) in heard
        report.happened += there
        report.not_happened += not there


def load(paths: Iterable[Path]) -> History:
    """The history in these files."""
    return assemble(event for path in paths for event in read_events(path))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.jepsen.check", description=__doc__)
    parser.add_argument("history", nargs="+", type=Path, help="files that a run has saved")
    report = judge(load(parser.parse_args().history))
    print(report.table())
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())

"""Acknowledgements (ack and nack) of attempts.

Owns: whether the attempt is the current one, whether the settlement is a repetition, and the effect of each verdict.
Leaves to others: the rows (ending).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from mesh.engines.semantics.acknowledgements import stale
from mesh.engines.semantics.validation import check_settlement
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book, Job
from mesh.engines.sqlite.ending import Ending
from mesh.engines.sqlite.status import CANCELLED, FORGOTTEN, NAMES, RUNNING, VERDICTS
from mesh.tasks.contract import Settlement

_SQL: Final = statements.named("tasks")
_NAMES_OF_VERDICTS: Final = {code: name for name, code in VERDICTS.items()}

#: A settlement, and its job; None when the same settlement was committed before.
Seen = tuple[Settlement, Job | None]


class Settling:
    """Settlements, for one transaction after another."""

    def __init__(self, book: Book, ending: Ending, flush: Callable[[], None]) -> None:
        """Args:
        flush: writes all pending rows, so that they can be found.
        """
        self._book: Final = book
        self._ending: Final = ending
        self._flush: Final = flush

    def look(self, settlements: Sequence[Settlement], *, alone: bool) -> list[Seen]:
        """Validate settlements and find their jobs.

        Args:
            alone: nothing else is committed with them. Otherwise a repeated settlement is rejected too, because the
                other changes would be made twice.

        Raises:
            LeaseLost: one of them is not of the current attempt.
            BadRequest: one is invalid.
        """
        held = self._book.held
        seen: list[Seen] = []
        said: dict[str, Settlement] = {}
        for each in settlements:
            check_settlement(each)
            job = held.get(each.id)
            if job is None or job.attempt != each.attempt:
                self._look_back(each)
                if not alone:
                    raise stale(each, f"it was already acknowledged as {each.verdict}, and that result is kept")
                job = None
            elif len(settlements) > 1:
                before = said.setdefault(each.id, each)
                if before is not each:
                    if before.verdict != each.verdict:
                        raise stale(each, f"the same unit also acknowledges it as {before.verdict}")
                    job = None
            seen.append((each, job))
        return seen

    def _look_back(self, each: Settlement) -> None:
        """Raises: LeaseLost: the same settlement was not committed before."""
        self._flush()
        row = self._book.execute(_SQL["verdict"], (each.id,)).fetchone()
        if row is None:
            raise stale(each, "the job is not known: it never existed, or its retention is over")
        attempt, verdict, status = row
        if status != RUNNING and attempt == each.attempt and verdict:
            if verdict == VERDICTS[each.verdict]:
                return
            raise stale(each, f"it was already acknowledged as {_NAMES_OF_VERDICTS[verdict]}")
        stands = "forgotten" if status == FORGOTTEN else NAMES[status]
        raise stale(each, f"it is {stands} now (attempt {attempt})")

    def put(self, seen: Sequence[Seen]) -> None:
        """Apply settlements that `look` has accepted."""
        ending = self._ending
        for each, job in seen:
            if job is None:
                continue
            verdict = each.verdict
            if verdict == "done":
                ending.done(job, each.result)
            elif verdict == "retry":
                ending.fail(job, each.reason, each.error, each.traceback)
                ending.again(
                    job, self._book.due_at(each.due_at, each.delay_s), tries=job.tries, verdict=VERDICTS["retry"]
                )
            elif verdict == "release":
                ending.again(
                    job, self._book.due_at(each.due_at, each.delay_s), tries=job.tries - 1, verdict=VERDICTS["release"]
                )
            elif verdict == "dead":
                ending.bury(job, each.reason or "failed", each.error, each.traceback, verdict=VERDICTS["dead"])
            else:
                if each.error or each.reason:
                    ending.fail(job, each.reason, each.error, each.traceback)
                ending.end(job, CANCELLED, verdict=VERDICTS["cancelled"])

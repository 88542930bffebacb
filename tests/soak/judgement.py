"""Whether something grew: pure, from samples.

A process is judged after its warm-up, while caches fill and code is imported: the median of the first quarter of what
is left is compared with that of the last. A median, so that a single peak is no growth; quarters, so that a saw-tooth
(garbage, a cache that is emptied) is seen as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Final

import msgspec

from .samples import Folders, Sample

#: Growth that is allowed.
MOST: Final = 0.05
#: What is too little to be called growth, whatever its share: one more descriptor is a connection, not a leak.
LEAST: Final = {"memory": 1024.0, "files": 3.0, "threads": 2.0, "log": 16.0}
#: Of the time after the warm-up, what a process must have lived through to be judged.
SHARE: Final = 0.6
#: Samples in a quarter, at least.
FEWEST: Final = 3


class Growth(msgspec.Struct, frozen=True):
    """Attributes:
    name: of the process or folder; what: "memory" (KiB), "files", "threads", or "log" (bytes per request).
    before, after: medians of the first and the last quarter.
    """

    name: str
    what: str
    before: float
    after: float

    @property
    def share(self) -> float:
        return (self.after - self.before) / self.before if self.before else float(self.after > 0)

    @property
    def too_much(self) -> bool:
        return self.after - self.before > max(MOST * self.before, LEAST[self.what] - 1)


_MEASURES: Final[dict[str, Callable[[Sample], int]]] = {
    "memory": lambda one: one.memory_kib,
    "files": lambda one: one.files,
    "threads": lambda one: one.threads,
}


def processes(samples: Sequence[Sample], warm_up_s: float) -> list[Growth]:
    """The growth of each life that is long enough, in the order of names."""
    warm = [one for one in samples if one.at >= warm_up_s]
    if not warm:
        return []
    span = max(one.at for one in warm) - min(one.at for one in warm)
    lives: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for one in warm:
        lives[one.name, one.pid].append(one)
    found = []
    for (name, _), life in sorted(lives.items()):
        if life[-1].at - life[0].at < SHARE * span:
            continue
        for what, measure in _MEASURES.items():
            found += _growth(name, what, [measure(one) for one in life])
    return found


def places(samples: Sequence[Folders], warm_up_s: float) -> list[Growth]:
    """The growth of the number of files in each folder, and of the log per request."""
    warm = [one for one in samples if one.at >= warm_up_s]
    found = []
    for name in warm[0].files if warm else ():
        found += _growth(f"{name}/", "files", [one.files[name] for one in warm])
    if len(warm) >= 4 * FEWEST:
        middle = len(warm) // 2
        found.append(Growth("logs", "log", _per_request(warm[: middle + 1]), _per_request(warm[middle:])))
    return found


def _growth(name: str, what: str, values: Sequence[float]) -> list[Growth]:
    quarter = len(values) // 4
    if quarter < FEWEST:
        return []
    return [Growth(name, what, median(values[:quarter]), median(values[-quarter:]))]


def _per_request(samples: Sequence[Folders]) -> float:
    """Bytes of log for each request; a rotation, which makes the logs smaller, is not counted."""
    grown = sum(max(0, later.log_bytes - one.log_bytes) for one, later in pairwise(samples))
    return grown / max(1, samples[-1].requests - samples[0].requests)


def table(found: Sequence[Growth]) -> str:
    """One line for each process or folder."""
    lines = [f"{'process':<28}{'memory, KiB':>24}{'descriptors':>18}{'threads':>14}"]
    rows: dict[str, dict[str, Growth]] = defaultdict(dict)
    for one in found:
        rows[one.name][one.what] = one
    for name, row in rows.items():
        cells = [_cell(row.get(what), width) for what, width in (("memory", 24), ("files", 18), ("threads", 14))]
        if "log" in row:
            cells = [f"  {row['log'].before:.1f} → {row['log'].after:.1f} bytes per request"]
        lines.append(f"{name:<28}{''.join(cells)}".rstrip())
    grown = [one for one in found if one.too_much]
    lines.append("grown: " + (", ".join(f"{one.name} {one.what} {one.share:+.0%}" for one in grown) or "nothing"))
    return "\n".join(lines)


def _cell(one: Growth | None, width: int) -> str:
    if one is None:
        return " " * width
    change = f" {one.share:+.1%}" if one.what == "memory" else ""
    return f"{one.before:.0f} → {one.after:.0f}{change}{'!' if one.too_much else ''}".rjust(width)

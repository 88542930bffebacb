"""The figures of a run as JSON.

Owns: the file's shape, and joining the parts of several runs in one file.
Leaves to others: making figures (rpc and its siblings), showing them (table, plot, page).

    {"format": 1, "machine": {...}, "versions": {...}, "sections": {name: {"taken_at", "commit", "load", "short", ...}}}

`load` is the load average of the minute before: of this run's own parts, or of a stranger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.children import ROOT

FORMAT = 1

Results = dict[str, Any]


def new(machine: Mapping[str, Any], versions: Mapping[str, str]) -> Results:
    """No figures yet."""
    return {"format": FORMAT, "machine": dict(machine), "versions": dict(versions), "sections": {}}


def load(path: Path) -> Results | None:
    """What the file holds; None if it is not there or of another format."""
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) and read.get("format") == FORMAT else None


def joined(before: Results | None, now: Results) -> Results:
    """The sections of `now` over those of `before`.

    Figures of another machine or of other versions are dropped: side by side they would be compared.
    """
    if before is None or (before["machine"], before["versions"]) != (now["machine"], now["versions"]):
        return now
    return {**now, "sections": {**before["sections"], **now["sections"]}}


def save(path: Path, results: Results) -> None:
    """Write it whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    # What a contestant wrote when it failed names files; where this checkout stands is nobody's business.
    text = json.dumps(_rounded(results), indent=1, ensure_ascii=False).replace(f"{ROOT}/", "")
    part.write_text(text + "\n")
    part.replace(path)


def _rounded(value: Any) -> Any:
    """Four significant digits: what lies beyond them is noise and only makes differences hard to read."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return value

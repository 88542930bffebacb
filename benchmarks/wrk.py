"""wrk, and what it says.

Owns: running it and reading its report.
Leaves to others: which address is asked (http_gateway, idle).
"""

from __future__ import annotations

import re
import shutil
from typing import Any

from benchmarks.children import ChildFailed, Children

INSTALL = "apt-get install wrk"

_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}


def _micros(share: int, report: str) -> float:
    found = re.search(rf"^\s+{share}%\s+([\d.]+)(us|ms|s|m)$", report, re.MULTILINE)
    return float(found[1]) * _UNITS[found[2]] if found else float("nan")


def read(report: str) -> dict[str, float]:
    """Figures of `wrk --latency`.

    Returns:
        requests_per_s, p50_us, p99_us, and bad: answers that were not 2xx or 3xx, and socket errors.

    Raises:
        ChildFailed: this is no report of wrk.
    """
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", report, re.MULTILINE)
    if rate is None:
        raise ChildFailed(f"wrk said: {report.strip()[-200:] or 'nothing'}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", report)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", report)
    bad = int(refused[1]) if refused else 0
    bad += sum(map(int, broken.groups())) if broken else 0
    return {
        "requests_per_s": float(rate[1]),
        "p50_us": _micros(50, report),
        "p99_us": _micros(99, report),
        "bad": float(bad),
    }


async def wrk(children: Children, url: str, seconds: float, connections: int = 64) -> dict[str, Any]:
    """Load `url` for so long with one thread; wrk counts whole seconds, so at least one."""
    if shutil.which("wrk") is None:
        raise ChildFailed(f"wrk is missing: {INSTALL}")
    whole = max(1, round(seconds))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--latency", url]
    return read(await children.run("wrk", command, timeout=whole + 20))

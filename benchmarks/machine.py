"""Where and with what a run was made.

Owns: the description that stands beside every figure.
Leaves to others: keeping it (results).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
from importlib import metadata
from pathlib import Path

from benchmarks.children import ROOT

PACKAGES = (
    *("pyzmq", "aiohttp", "msgpack", "msgspec", "uvloop", "grpcio", "nats-py", "aiozmq", "zeroapi"),
    *("aio-pika", "redis", "hiredis", "celery", "taskiq", "taskiq-redis"),
)
#: RabbitMQ tells its version only to who starts it; Debian has it in the name of a directory.
RABBITMQ = Path("/usr/lib/rabbitmq/lib")


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _said(*command: str) -> str:
    """The first line that a program says of itself; "" if it is not there."""
    if shutil.which(command[0]) is None:
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
        return (done.stdout or done.stderr).partition("\n")[0].strip()
    return ""


def machine() -> dict[str, str | int]:
    """Processor, memory and kernel; nothing that names the machine."""
    memory_kb = _first(r"^MemTotal:\s+(\d+)", _read("/proc/meminfo"))
    return {
        "cpu": _first(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo")) or platform.processor(),
        "cpus": os.cpu_count() or 1,
        "memory_gib": round(int(memory_kb) / 2**20) if memory_kb else 0,
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def versions() -> dict[str, str]:
    """Of everything that takes part and is installed."""
    found = {"mesh": "", "Python": platform.python_version()}
    for name in ("zeromesh", *PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found["mesh" if name == "zeromesh" else name] = metadata.version(name)
    with contextlib.suppress(ImportError):
        import zmq

        found["libzmq"] = zmq.zmq_version()
    moleculer = ROOT / "benchmarks/peers/moleculer/node_modules/moleculer/package.json"
    if moleculer.exists():
        found["Moleculer"] = str(json.loads(moleculer.read_text())["version"])
    found["Node"] = _said("node", "--version").lstrip("v")
    found["nats-server"] = _first(r"v?(\d[\w.]+)", _said("nats-server", "--version"))
    found["redis-server"] = _first(r"v=(\d[\w.]+)", _said("redis-server", "--version"))
    found["RabbitMQ"] = next((path.name.partition("-")[2] for path in RABBITMQ.glob("rabbitmq_server-*")), "")
    found["SQLite"] = sqlite3.sqlite_version
    found["wrk"] = _first(r"(\d+\.\d+\.\d+)", _said("wrk", "--version"))
    return {name: version for name, version in found.items() if version}


def commit() -> str:
    """The commit that was measured, with a + if the tree differed from it; "" outside a checkout."""
    head = _said("git", "rev-parse", "--short", "HEAD")
    if not re.fullmatch(r"[0-9a-f]{7,40}", head):
        return ""
    return head + ("+" if _said("git", "status", "--porcelain", "--untracked-files=no", "--", "mesh") else "")

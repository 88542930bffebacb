"""A disk that fails at one point of a commit, after the other: what was confirmed is there at the next start, always.

    python tests/engines/disk_faults.py            # every point, every kind of failure: about a minute
    python tests/engines/disk_faults.py --short    # a few points of each kind

Each life of a store is a process of its own, forked: it commits until something fails for good, or all is done, and
ends without closing its files, as with kill -9. Then the faults are over, and another process looks at what is there.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, NoReturn

from mesh import ids
from mesh.engines.contract import Unit
from mesh.engines.sqlite import turn as transactions
from mesh.engines.sqlite.core import Core
from mesh.engines.sqlite.disk import Fatal
from mesh.errors import MeshError, Unwritable
from mesh.state.contract import Write
from mesh.tasks.contract import NewTask

SOURCE = Path(__file__).with_suffix(".c")
WRITE, SYNC, CUT, OPEN = 1, 2, 4, 8
TURNS = 12
UNITS = 3


class Fault(NamedTuple):
    """What fails: calls of a kind, with an error (0: a short write); `lasting`: all that follow as well."""

    name: str
    calls: int
    error: int
    lasting: bool = False


FAULTS = (
    Fault("write: EIO", WRITE, errno.EIO),
    Fault("write: ENOSPC", WRITE, errno.ENOSPC),
    Fault("write: ENOSPC from then on", WRITE, errno.ENOSPC, True),
    Fault("write: short", WRITE, 0),
    Fault("fsync, fdatasync: EIO", SYNC, errno.EIO),
    Fault("fsync, fdatasync: EIO from then on", SYNC, errno.EIO, True),
    Fault("ftruncate: EIO", CUT, errno.EIO),
    Fault("open: EIO", OPEN, errno.EIO),
    Fault("open: ENOSPC", OPEN, errno.ENOSPC),
)


def compile_library(dir: Path) -> Path:
    """Raises: OSError, CalledProcessError: there is no compiler."""
    library = dir / "disk_faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def unit(number: int) -> Unit:
    """A task and a key that are both there, or neither is."""
    return Unit(
        f"u{number}",
        tasks=[NewTask(f"t{number}", "mail.send", b"x" * 900)],
        writes=[Write("units", f"{number:06}", "set", ids.etag(), b"\x01")],
    )


def live(dir: Path, tell: int, first: int) -> None:
    """Commit; the last number of each confirmed transaction goes to the descriptor `tell`."""
    # So that a few transactions bring the log into the database more than once.
    transactions.CHECKPOINT_PAGES = 12  # type: ignore[misc]
    core = Core(dir)
    core.open()
    number = first
    fatal = False
    for turn_number in range(TURNS):
        units = [unit(number + each) for each in range(1, UNITS + 1)]
        try:
            with core.turn(1_000_000.0) as turn:
                outcomes = turn.apply(units)
        except Unwritable:
            continue
        except Fatal:
            fatal = True
            continue
        assert not fatal, "something was confirmed after a failure for good"
        assert all(outcome.error is None for outcome in outcomes)
        number += UNITS
        os.write(tell, f"{number}\n".encode())
        if turn_number % 5 == 4:
            core.rest()


def found(dir: Path) -> list[int]:
    """The numbers of the units that are there. Raises: AssertionError: one is half there, or the file is not sound."""
    core = Core(dir)
    core.open()
    assert core.check() == []
    keys = {int(entry.key) for entry in core.page("units", limit=10_000, wall=1.0)}
    tasks = {int(job.id[1:]) for job in core.jobs("mail.send", "ready", limit=10_000, wall=1.0)}
    assert keys == tasks, f"half there: {keys ^ tasks}"
    core.close()
    return sorted(keys)


def forked(act: object) -> int:
    """Run it in a process that ends without cleaning up; 0, or 1 for an error of mesh, or 2 for anything else."""
    pid = os.fork()
    if not pid:
        _in_child(act)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _in_child(act: object) -> NoReturn:
    code = 2
    try:
        act()  # type: ignore[operator]
        code = 0
    except MeshError as exc:
        code = 1
        print(f"{exc.code}: {exc.message}", file=sys.stderr, flush=True)
    except BaseException as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


class Sweep:
    """All points of one fault."""

    def __init__(self, library: Path, root: Path) -> None:
        self._faults = ctypes.CDLL(str(library))
        self._faults.faults_calls.restype = ctypes.c_long
        self._faults.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
        self._root = root

    def points(self, fault: Fault) -> int:
        """How many calls there are that may fail."""
        return self._life(fault, 0)[2]

    def check(self, fault: Fault, at: int) -> tuple[int, int]:
        """(confirmed, there). Raises: AssertionError: something that was confirmed is not."""
        last, there, _ = self._life(fault, at)
        assert there[:last] == list(range(1, last + 1)), f"{fault.name}, call {at}: {last} confirmed, there: {there}"
        # What was not confirmed may be there: at most what one transaction held.
        assert len(there) <= last + UNITS, f"{fault.name}, call {at}: {last} confirmed, there: {there}"
        return last, len(there)

    def _life(self, fault: Fault, at: int) -> tuple[int, list[int], int]:
        dir = self._root / "life" / "data"
        dir.parent.mkdir(mode=0o700)
        said, calls, seen = (self._root / name for name in ("said", "calls", "seen"))
        said.write_text("")

        def act() -> None:
            tell = os.open(said, os.O_WRONLY | os.O_APPEND)
            self._faults.faults_arm(os.fsencode(dir.parent), at, fault.calls, fault.error, fault.lasting)
            try:
                live(dir, tell, 0)
            finally:
                count = self._faults.faults_calls()
                self._faults.faults_arm(b"/nowhere", 0, 0, 0, 0)
                calls.write_text(str(count))

        try:
            code = forked(act)
            assert code in (0, 1), f"{fault.name}, call {at}: the store failed in a way that nobody foresaw"
            looked = forked(lambda: seen.write_text(" ".join(map(str, found(dir)))))
            assert looked == 0, f"{fault.name}, call {at}: what is there cannot be used"
            lines = said.read_text().split()
            there = [int(word) for word in seen.read_text().split()]
            return int(lines[-1]) if lines else 0, there, int(calls.read_text())
        finally:
            shutil.rmtree(dir.parent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--short", action="store_true", help="a few points of each kind")
    short = parser.parse_args().short
    preloaded = os.environ.get("DISK_FAULTS")
    if preloaded is None:
        with tempfile.TemporaryDirectory(prefix="mesh-faults-") as root:
            library = compile_library(Path(root))
            env = {**os.environ, "LD_PRELOAD": str(library), "DISK_FAULTS": str(library)}
            return subprocess.run([sys.executable, *sys.argv], env=env, check=False).returncode
    rng = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="mesh-faults-") as root:
        sweep = Sweep(Path(preloaded), Path(root))
        total = 0
        for fault in FAULTS:
            count = sweep.points(fault)
            points = range(1, count + 1)
            chosen = sorted({1, count, *rng.sample(points, min(2, count))}) if short and count else points
            least = min((sweep.check(fault, at)[0] for at in chosen), default=0)
            total += len(chosen)
            print(f"{fault.name}: {len(chosen)} of {count} points, none lost; at least {least} confirmed", flush=True)
        print(f"{total} lives, 0 confirmed writes lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())

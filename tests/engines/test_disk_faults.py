"""A disk that fails at some point of a commit; every point: `python tests/engines/disk_faults.py`."""

from __future__ import annotations

import shutil
import subprocess
import sys

import disk_faults
import pytest


def test_no_failing_call_loses_what_was_confirmed() -> None:
    """EIO, ENOSPC and short writes, failed fsync, ftruncate and open; after a failed fsync nothing is confirmed."""
    if shutil.which("cc") is None:
        pytest.skip("a C compiler is needed: apt install gcc libc6-dev")
    done = subprocess.run(
        [sys.executable, disk_faults.__file__, "--short"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

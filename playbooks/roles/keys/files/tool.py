"""Finds a `mesh` on the control machine, which makes keys there; prints its path.

Ansible may have been installed by itself. Then mesh is installed into a virtual environment below the build directory:
from the wheels that were built for hosts as far as they fit, and else from a package index.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description="Find or install `mesh` on this machine.")
    parser.add_argument("--project", type=Path, required=True, help="where pyproject.toml stands")
    parser.add_argument("--build", type=Path, required=True, help="where what is built is kept")
    asked = parser.parse_args()
    beside = [Path(sys.executable).parent / "mesh", asked.project / ".venv/bin/mesh"]
    found = [*map(str, beside), shutil.which("mesh") or "", str(asked.build.resolve() / "tool/bin/mesh")]
    for command in filter(None, found):
        if _works(command):
            sys.stdout.write(command)
            return 0
    asked.build.mkdir(parents=True, exist_ok=True)
    with open(asked.build / ".tool.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        why = _install(asked.project.resolve(), asked.build.resolve()) if not _works(found[-1]) else ""
    if why:
        sys.stderr.write(
            f"keys are made by the `mesh` command of this machine; it is missing, and cannot be installed:\n{why}\n"
        )
        return 1
    sys.stdout.write(found[-1])
    return 0


def _works(command: str) -> bool:
    """Whether it is this project's: another program may have the name."""
    if not os.access(command, os.X_OK):
        return False
    done = subprocess.run([command, "keys", "make", "--help"], capture_output=True, check=False)
    return done.returncode == 0


def _install(project: Path, build: Path) -> str:
    """Why that failed; "" when it did not."""
    where = build / "tool"
    try:
        venv.create(where, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        return f"{exc}; install python3-venv, or mesh: pip install zeromesh"
    words = [str(where / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    wheels = [word for each in sorted(build.glob("wheels-*")) if each.is_dir() for word in ("--find-links", str(each))]
    done = subprocess.run([*words, *wheels, str(project)], capture_output=True, text=True, check=False)
    return done.stderr.strip()[-2000:] if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main())

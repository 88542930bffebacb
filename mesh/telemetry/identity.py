"""The name of this process, and the release that it runs.

The name is the label of its metrics. Under supervisor a process keeps its name ("greeting:greeting_0") across restarts,
while its worker id changes each time.
"""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

#: The directory of releases on a host that playbooks deploy to: RELEASES/NAME/.venv.
RELEASES: Final = "releases"


class ProcessIdentity(msgspec.Struct, frozen=True, omit_defaults=True):
    """The identity of a process.

    Attributes:
        name: as supervisorctl writes it: "greeting:greeting_0", "hub"; "" when no supervisor runs it.
        release: the name of the deployed release that it runs; "" outside of one.
        version: of mesh.
        python: of the interpreter.
    """

    name: str = ""
    release: str = ""
    version: str = ""
    python: str = ""


@cache
def this_process() -> ProcessIdentity:
    """The identity of this process."""
    return ProcessIdentity(
        name=supervised_name(
            os.environ.get("SUPERVISOR_GROUP_NAME", ""), os.environ.get("SUPERVISOR_PROCESS_NAME", "")
        ),
        release=release_of(Path(sys.prefix)),
        version=_version(),
        python=platform.python_version(),
    )


def supervised_name(group: str, process: str) -> str:
    """The name of a process as supervisorctl writes it; the group is omitted if it has the same name."""
    return process if group in ("", process) else f"{group}:{process}"


def release_of(prefix: Path) -> str:
    """The release that an environment (…/releases/NAME/.venv) belongs to; "" when it belongs to none."""
    project = prefix.resolve().parent
    return project.name if project.parent.name == RELEASES else ""


def _version() -> str:
    try:
        return version("zeromesh")
    except PackageNotFoundError:
        return ""

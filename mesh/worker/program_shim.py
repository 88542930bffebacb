"""Runs as the first step of a program's process: sets its limits, ties its life to that of its parent, and executes it.

Owns: these steps. It is a script for `python -I -S`, and imports nothing of mesh, so that it takes some milliseconds:

    program_shim.py PARENT memory=BYTES files=N nice=N -- COMMAND...

Python code between fork and exec is not safe in a process with threads; a script of its own is.
"""

import os
import signal
import sys

#: prctl(2).
PR_SET_PDEATHSIG = 1
#: Exit codes of shells for a command that was not found, and for one that cannot be executed.
NOT_FOUND = 127
NOT_EXECUTABLE = 126


def _follow(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends; where there is no such call, nothing."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(NOT_EXECUTABLE)  # the parent ended before the call


def _limit(what: str, number: int) -> None:
    import resource

    if what == "nice":
        os.nice(number)
    elif what == "memory":
        # Data, not address space: runtimes reserve far more addresses than they ever use.
        resource.setrlimit(resource.RLIMIT_DATA, (number, number))
    elif what == "files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def main(words: list[str]) -> None:
    """Execute the command; does not return."""
    at = words.index("--")
    command = words[at + 1 :]
    try:
        _follow(int(words[0]))
        for each in words[1:at]:
            what, _, number = each.partition("=")
            _limit(what, int(number))
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
            # Python ignores them, and a program would inherit that.
            signal.signal(ignored, signal.SIG_DFL)
        os.execvp(command[0], command)
    except FileNotFoundError:
        code, why = NOT_FOUND, "there is no such program on PATH"
    except (OSError, ValueError) as exc:
        code, why = NOT_EXECUTABLE, str(exc)
    sys.stderr.write(f"mesh program: {command[0]}: {why}\n")
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])

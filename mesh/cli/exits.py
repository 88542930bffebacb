"""Exit codes, which scripts may rely on.

Owns: the numbers, and the mapping from errors to codes. Leaves to others: printing the error (report).
"""

from __future__ import annotations

from typing import Final

from mesh.errors import BadRequest, ConfigError, MeshError, SetupError, TryLater, Uncertain

OK: Final = 0
#: The other side failed, or a process did not do what was requested.
FAILED: Final = 1
#: The command line, mesh.toml or the environment is wrong.
USAGE: Final = 2
#: There was no answer, or not in time; the same command may succeed later.
UNAVAILABLE: Final = 3
#: The request itself was refused: an unknown service or method, wrong arguments.
REFUSED: Final = 4
#: The store's files are damaged, changed by another program, or not those of the store that was there before: a person
#: must look at them. Supervisor does not start the store again after this exit code.
UNSOUND: Final = 5
#: An unexpected error: a bug in mesh.
BUG: Final = 70
#: Ctrl-C, by the convention of shells: 128 + SIGINT.
INTERRUPTED: Final = 130
#: The reader of the output closed it, by the convention of shells: 128 + SIGPIPE.
UNHEARD: Final = 141

TEXT: Final = """\
Exit codes: 0 done · 1 it failed · 2 wrong usage or configuration · 3 no answer in time ·
4 the request was refused (unknown service or method, wrong arguments) · 5 the store's data is damaged · 70 a bug ·
130 interrupted"""

_BY_TYPE: Final[tuple[tuple[type[MeshError], int], ...]] = (
    (ConfigError, USAGE),
    (SetupError, FAILED),
    (TryLater, UNAVAILABLE),
    (Uncertain, UNAVAILABLE),
    (BadRequest, REFUSED),
)


def code_of(error: MeshError) -> int:
    """The exit code for `error`."""
    if error.code == "interrupted":
        return INTERRUPTED
    return next((code for kind, code in _BY_TYPE if isinstance(error, kind)), FAILED)

"""One finding of `mesh doctor`.

Owns: its fields, and the grades. Leaves to others: the checks (the doctor modules), output (cli.doctor).
"""

from __future__ import annotations

from typing import Final, NamedTuple

GOOD: Final = "good"
ODD: Final = "odd"
BAD: Final = "bad"


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        grade: GOOD, ODD (it works, but may be unexpected) or BAD.
        about: what was checked; for a value in mesh.toml "mesh.toml:14: gateway.port".
        told: the observation.
        mend: the remedy; "" when nothing is to be done.
    """

    grade: str
    about: str
    told: str
    mend: str = ""

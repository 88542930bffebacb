"""What `mesh doctor` says of one thing.

Owns: the shape, and the grades. Leaves to others: finding it (the doctors), the words on the screen (cli.doctor).
"""

from __future__ import annotations

from typing import Final, NamedTuple

GOOD: Final = "good"
ODD: Final = "odd"
BAD: Final = "bad"


class Finding(NamedTuple):
    """The answer to one question.

    Attributes:
        grade: GOOD, ODD (it works, and may surprise) or BAD.
        about: what was looked at; of a value in mesh.toml "mesh.toml:14: gateway.port".
        told: what was seen.
        mend: what to do; "" when nothing is to be done.
    """

    grade: str
    about: str
    told: str
    mend: str = ""

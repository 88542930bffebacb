"""The limits of a form, and the errors for forms that cannot be read.

Owns: both. The size of the whole body is limited by the gateway (`max_body`).
"""

from __future__ import annotations

from typing import Any, Final

from mesh.calls.inbound import BadItem

#: Parts of a multipart form, and fields of an urlencoded one.
MOST_PARTS: Final = 1000
#: Header fields of one part, and bytes of each. Browsers send two or three; a name or file name may be long.
MOST_HEADERS: Final = 16
HEADER_BYTES: Final = 8192
#: All text fields of a form together: they are in memory.
TEXT_BYTES: Final = 2**20
#: All files of a form together, up to which they stay in memory; what does not fit is in a temporary file.
SPOOL_BYTES: Final = 2**20


class BadForm(BadItem):
    """The body of a request is not a form that can be read. The handler gets the error; the client caused it."""

    code = "bad_form"


class FormTooLarge(BadForm):
    """A form has too many parts, or text or a part above the limit that the message names."""

    code = "form_too_large"
    status = 413


def too_large(what: str, most: int, unit: str = "bytes") -> FormTooLarge:
    """The error for `what`, which has more than `most` units."""
    return FormTooLarge(f"{what} has more than {most} {unit}", details={f"limit_{unit}": most})


def bad_field(name: str, reason: str) -> BadItem:
    """The error for one field of a form; `details["path"]` is `form.title`."""
    details: dict[str, Any] = {"path": f"form.{name[:100]}"}
    return BadItem(f"form.{name[:100]}: {reason}", details=details)

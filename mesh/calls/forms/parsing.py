"""Splits the body of a multipart form into events, as its chunks arrive.

Owns: driving the push parser of python-multipart, and its limits.
Leaves to others: reading chunks and giving parts to a handler (multipart), the head of a part (content_type).
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Final

from mesh.calls.forms.content_type import Head, boundary_of, library, read_head
from mesh.calls.forms.errors import HEADER_BYTES, MOST_HEADERS, MOST_PARTS, BadForm, FormTooLarge, too_large


class EndOfPart:
    """The event at the end of a part."""


END_OF_PART: Final = EndOfPart()

#: The head of a part, bytes of its content, or its end.
Event = Head | bytes | EndOfPart

# The library logs a warning for each malformed body; any client could fill the log with them.
_SILENT: Final = logging.Logger("mesh.forms")
_SILENT.disabled = True


class Parser:
    """The parser of one body. The events of what was fed are in `events`.

    Args:
        content_type: of the body, with its boundary.

    Raises:
        BadForm: the Content-Type is not that of a multipart form.
        SetupError: the package python-multipart is not installed.
    """

    def __init__(self, content_type: str) -> None:
        boundary = boundary_of(content_type)
        self.events: deque[Event] = deque()
        self.complete = False
        self._parts = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._name = self._value = b""
        multipart = library()
        self._errors: type[Exception] = multipart.FormParserError
        callbacks: dict[str, Any] = {
            "on_part_begin": self._part_began,
            "on_header_field": self._name_came,
            "on_header_value": self._value_came,
            "on_header_end": self._header_ended,
            "on_headers_finished": self._headers_ended,
            "on_part_data": self._data_came,
            "on_part_end": self._part_ended,
            "on_end": self._ended,
        }
        self._parser = multipart.MultipartParser(
            boundary, callbacks, max_header_count=MOST_HEADERS, max_header_size=HEADER_BYTES
        )
        self._parser.logger = _SILENT

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body.

        Raises:
            BadForm: they are malformed, or the form is too large.
        """
        try:
            self._parser.write(chunk)
        except self._errors as exc:
            if str(exc).startswith("Maximum header"):
                raise FormTooLarge(
                    f"a part has more than {MOST_HEADERS} header fields, or one of more than {HEADER_BYTES} bytes",
                    details={"limit_bytes": HEADER_BYTES},
                ) from exc
            raise BadForm(f"the form is malformed: {str(exc)[:200]}") from exc

    def finish(self) -> None:
        """The body has ended.

        Raises:
            BadForm: it is incomplete.
        """
        if not self.complete:
            raise BadForm("the form ends before its closing boundary")

    # --- called by the library --------------------------------------------------------------------------

    def _part_began(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise too_large("the form", MOST_PARTS, "parts")
        self._headers = []

    def _name_came(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _value_came(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ended(self) -> None:
        self._headers.append((self._name, self._value))
        self._name = self._value = b""

    def _headers_ended(self) -> None:
        self.events.append(read_head(self._headers))

    def _data_came(self, data: bytes, start: int, end: int) -> None:
        self.events.append(data[start:end])

    def _part_ended(self) -> None:
        self.events.append(END_OF_PART)

    def _ended(self) -> None:
        self.complete = True

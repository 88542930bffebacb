"""Forms for unit tests of methods that take `http.Multipart`.

Owns: encoding a form. Leaves to others: parsing it, which is what a worker does (calls.forms).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final

from mesh.calls.forms.files import File
from mesh.calls.forms.multipart import Multipart

_BOUNDARY: Final = "----mesh-form-of-a-test"
_CHUNK_BYTES: Final = 64 * 1024


def multipart(parts: Iterable[tuple[str, str | File]]) -> Multipart:
    """A form for a method that is called directly; it is encoded and parsed as one from a browser is::

        await shop.upload(multipart([("title", "A"), ("photo", http.File(b"…", filename="a.png"))]))

    Args:
        parts: the name of each field with its text or file, in order.
    """
    body = bytearray()
    for name, value in parts:
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{_quoted(name)}"'
        if isinstance(value, File):
            head += f'; filename="{_quoted(value.filename)}"'
            head += f"\r\nContent-Type: {value.content_type or 'application/octet-stream'}"
        content = bytes(value._data) if isinstance(value, File) else value.encode()
        body += head.encode() + b"\r\n\r\n" + content + b"\r\n"
    body += f"--{_BOUNDARY}--\r\n".encode()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), _CHUNK_BYTES):
            yield bytes(body[at : at + _CHUNK_BYTES])

    return Multipart(chunks(), f"multipart/form-data; boundary={_BOUNDARY}")


def _quoted(text: str) -> str:
    """As browsers write names. Source: HTML, "multipart/form-data encoding algorithm"."""
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")

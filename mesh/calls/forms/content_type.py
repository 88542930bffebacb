"""The Content-Type of a form, and the header fields of a part.

Owns: boundaries, names and file names, and what is refused in them. Pure.
Leaves to others: splitting the body (parsing).

Source: RFC 7578 (multipart/form-data), RFC 2046, section 5.1.1 (boundaries).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mesh.calls.forms.errors import BadForm
from mesh.errors import SetupError

MULTIPART: Final = "multipart/form-data"
URLENCODED: Final = "application/x-www-form-urlencoded"

_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
#: Encodings of a part that leave its bytes unchanged; RFC 7578, section 4.7 deprecates the field.
_IDENTITY: Final = frozenset({"", "7bit", "8bit", "binary"})
_UTF8: Final = frozenset({"", "utf-8", "utf8", "us-ascii", "ascii"})
#: The longest file name that a handler gets; its end is kept, which has the extension.
_NAME_CHARACTERS: Final = 255


class Head(NamedTuple):
    """The header fields of one part.

    Attributes:
        name: of the field.
        filename: the base name of the file; None for a text field, "" when no file was chosen.
        content_type: as the client sent it; "" without one.
        charset: of text, in lower case; "" without one.
        headers: all header fields, by their names in lower case.
    """

    name: str
    filename: str | None
    content_type: str
    charset: str
    headers: Mapping[str, str]


def library() -> Any:
    """The package python_multipart, which is an extra.

    Raises:
        SetupError: it is not installed.
    """
    try:
        import python_multipart.multipart
    except ImportError as exc:
        raise SetupError("HTML forms need the extra forms: pip install 'zeromesh[forms]'") from exc
    return python_multipart.multipart


def kind_of(content_type: str) -> str:
    """A media type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def boundary_of(content_type: str) -> bytes:
    """The boundary in the Content-Type of a multipart form.

    Raises:
        BadForm: the type is another one, or there is no valid boundary.
    """
    kind, options = _options(content_type)
    if kind != MULTIPART:
        raise BadForm(f'the form is not {MULTIPART}, but "{kind[:80]}"')
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise BadForm("the Content-Type of the form has no boundary of 1 to 70 valid characters")
    return boundary


def read_head(fields: list[tuple[bytes, bytes]]) -> Head:
    """The head of a part.

    Raises:
        BadForm: it is not the head of a field or file, or has an encoding that is not supported.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name = raw_name.decode("ascii", "replace").lower()
        if _CONTROLS.search(raw_value):
            raise BadForm("a header field of a part has a control character")
        if name in headers:
            raise BadForm("a part has a header field twice")
        headers[name] = _text(raw_value.strip(b" \t"), "a header field of a part")
    if "content-disposition" not in headers:
        raise BadForm("a part has no Content-Disposition")
    kind, options = _options(headers["content-disposition"])
    if kind != "form-data" or b"name" not in options:
        raise BadForm('the Content-Disposition of a part is not form-data with a "name"')
    field = _text(options[b"name"], "the name of a part")
    filename = options.get(b"filename")
    content_type = headers.get("content-type", "")
    media, parameters = _options(content_type) if content_type else ("", {})
    if filename is None and media.startswith("multipart/"):
        raise BadForm("a part is multipart itself; send its files as parts of the form")
    if headers.get("content-transfer-encoding", "").strip().lower() not in _IDENTITY:
        raise BadForm("a part has a Content-Transfer-Encoding; send its bytes unchanged")
    charset = parameters.get(b"charset", b"").decode("latin-1").lower()
    return Head(
        field,
        None if filename is None else base_name(_text(filename, "the file name of a part")),
        content_type,
        charset,
        headers,
    )


def check_charset(head: Head) -> None:
    """Refuse text in another encoding than UTF-8.

    Raises:
        BadForm: the part declares one.
    """
    if head.charset not in _UTF8:
        raise BadForm(
            f'form.{head.name[:100]}: the charset "{head.charset[:40]}" is not supported; send UTF-8',
            details={"path": f"form.{head.name[:100]}"},
        )


def base_name(name: str) -> str:
    """The last part of a file name, without directories, drives and characters that are not printable.

    It is the client's word for the file and nothing else: never use it as a path. "" when nothing is left.
    """
    name = name.replace("\\", "/").rpartition("/")[2]
    name = re.sub(r"^[A-Za-z]:", "", "".join(each for each in name if each.isprintable())).strip()
    return "" if name in (".", "..") else name[-_NAME_CHARACTERS:]


def _options(value: str) -> tuple[str, dict[bytes, bytes]]:
    # The library takes header fields as WSGI has them: bytes, each as a character.
    parsed: tuple[bytes, dict[bytes, bytes]] = library().parse_options_header(value.encode().decode("latin-1"))
    kind, options = parsed
    return kind.decode("latin-1").strip(), options


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadForm(f"{what} is not UTF-8") from None

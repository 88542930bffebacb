"""Many images in one body: told apart, whatever they came in.

Owns: what curl -F sends (multipart/form-data, RFC 7578), zip and tar archives, a single image, and how much of each is
unpacked: a small archive can hold a large nothing.
Leaves to others: whether each is an image at all (picture), keeping them (album).

The form is seen from the first bytes: a method is given a body, not its Content-Type.
"""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from email.message import Message
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import mesh

#: Files of one album.
MOST_IMAGES: Final = 2000
#: Bytes of them together once they are unpacked. They are in memory at once, in each worker that unpacks.
MOST_BYTES: Final = 128 * 2**20
#: Of one file: it is one value of state, and one argument of a call.
MOST_IMAGE_BYTES: Final = 32 * 2**20
#: Entries of an archive, with those that are no files: directories, links, what was left out.
_MOST_ENTRIES: Final = 10 * MOST_IMAGES
_MOST_NAME: Final = 200
#: After the dashes, RFC 2046 §5.1.1.
_MOST_BOUNDARY: Final = 70
#: zlib's way of saying that the head is gzip's.
_GZIP: Final = 31
#: What file managers put beside the images.
_BESIDE: Final = ("Thumbs.db", "desktop.ini")


class BadParcel(mesh.ServiceError):
    """The body holds no images that can be told apart."""

    code = "bad_parcel"
    status = 422


class ParcelTooLarge(BadParcel):
    """The body holds more than one album may."""

    code = "parcel_too_large"
    status = 413


class Part(NamedTuple):
    """One file of the body."""

    name: str
    content: bytes


def unpack(body: bytes) -> list[Part]:
    """The files in a body, in order. Directories, and what file managers hide beside images, are left out.

    Raises:
        BadParcel: it holds none, or is damaged.
        ParcelTooLarge: it holds too many, or too large ones.
    """
    try:
        parts = list(_bounded(_files(body)))
    except mesh.MeshError:
        raise
    # Three decoders meet a stranger's bytes here: BadZipFile, TarError, zlib.error, struct.error, RuntimeError (for a
    # password) and more are all the same news.
    except Exception as exc:
        raise BadParcel(f"the body cannot be parsed: {exc} ({type(exc).__name__})") from exc
    if not parts:
        raise BadParcel("the body contains no file; send images as multipart/form-data, or in a zip or tar archive")
    return parts


def _files(body: bytes) -> Iterator[Part]:
    # Before the others: a tar archive begins with the name of its first file, which may look like any of them.
    if body[257:262] == b"ustar":
        return _tar(body)
    if body[:2] == b"--":
        return _multipart(body)
    if body[:4] in (b"PK\x03\x04", b"PK\x05\x06"):  # the second begins an archive of nothing
        return _zip(body)
    if body[:2] == b"\x1f\x8b":
        return _tar(_inflated(body))
    return iter([Part("image", body)] if body else [])


def _bounded(parts: Iterator[Part]) -> Iterator[Part]:
    count = size = 0
    for part in parts:
        count, size = count + 1, size + len(part.content)
        _check_size(part.name, len(part.content))
        if count > MOST_IMAGES:
            raise ParcelTooLarge(f"the body has more than {MOST_IMAGES} files: create several albums")
        if size > MOST_BYTES:
            raise _too_much()
        yield part


# --- archives ---------------------------------------------------------------------------------------------


def _zip(body: bytes) -> Iterator[Part]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        entries = archive.infolist()
        _check_entries(len(entries))
        for entry in entries:
            if not entry.is_dir() and not _hidden(entry.filename):
                # zipfile inflates no more than is announced here, so that a lie is found out cheaply.
                _check_size(entry.filename, entry.file_size)
                yield Part(_base(entry.filename), archive.read(entry))


def _tar(body: bytes) -> Iterator[Part]:
    with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as archive:
        # Counted one by one: sizes that are negative lead round in circles.
        for count, entry in enumerate(archive, 1):
            _check_entries(count)
            if entry.isreg() and not _hidden(entry.name):
                _check_size(entry.name, entry.size)
                file = archive.extractfile(entry)
                content = file.read() if file is not None else b""
                if len(content) != entry.size:
                    raise BadParcel(f"the archive is truncated in {_base(entry.name)!r}")
                yield Part(_base(entry.name), content)


def _inflated(body: bytes) -> bytes:
    """What gzip made small. All of it at once, so that no size in it can lead to more than this."""
    most = MOST_BYTES + _MOST_ENTRIES * 2 * tarfile.BLOCKSIZE
    inflate = zlib.decompressobj(_GZIP)
    plain = inflate.decompress(body, most)
    if inflate.unconsumed_tail:
        raise _too_much()
    if not inflate.eof:
        raise BadParcel("the archive is truncated")
    if plain[257:262] != b"ustar":
        raise BadParcel("the gzip data is not a tar archive; send an image uncompressed")
    return plain


def _check_entries(count: int) -> None:
    if count > _MOST_ENTRIES:
        raise ParcelTooLarge(f"the archive has more than {_MOST_ENTRIES} entries: create several albums")


def _check_size(name: str, size: int) -> None:
    if size > MOST_IMAGE_BYTES:
        raise ParcelTooLarge(
            f"{_base(name)!r} is {size:,} bytes long; an image of an album may have {MOST_IMAGE_BYTES >> 20} MiB"
        )


def _too_much() -> ParcelTooLarge:
    return ParcelTooLarge(f"unpacked, it has more than {MOST_BYTES >> 20} MiB: create several albums")


# --- multipart/form-data ----------------------------------------------------------------------------------


def _multipart(body: bytes) -> Iterator[Part]:
    line, _, _ = body.partition(b"\r\n")
    boundary = line.rstrip(b" \t")
    if not 2 < len(boundary) <= 2 + _MOST_BOUNDARY:
        raise BadParcel("the body begins like multipart/form-data, but its first line is not a boundary")
    # A line that only begins like the boundary is content.
    delimiter = re.compile(rb"\r\n" + re.escape(boundary) + rb"(--)?[ \t]*(?:\r\n|\Z)")
    at = len(line) + 2
    while True:
        # One that follows at once has no content before it: its line break is the one that ended the line before.
        end = delimiter.search(body, max(at - 2, 0))
        if end is None:
            raise BadParcel("the multipart body has no last boundary: it is truncated")
        part = _field(body[at : max(end.start(), at)])
        if part is not None:
            yield part
        if end[1]:
            return
        at = end.end()


def _field(piece: bytes) -> Part | None:
    """One field of a form; None when it is no file."""
    head, found, content = piece.partition(b"\r\n\r\n")
    if not found:
        raise BadParcel("a part of the multipart body has no end of its headers")
    message = Message()
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        message[name.strip()] = value.strip()
    filename = message.get_filename()
    # A form that is sent with no file chosen has an empty name and nothing in it.
    return Part(_base(filename), content) if filename else None


# --- names ------------------------------------------------------------------------------------------------


def _base(name: str) -> str:
    """The file's own name: directories say nothing of an album, and ".." would say too much."""
    clean = "".join(letter if letter.isprintable() else "_" for letter in name.replace("\\", "/"))
    return PurePosixPath(clean).name[:_MOST_NAME] or "image"


def _hidden(name: str) -> bool:
    """Whether a file manager put it into an archive, beside the images."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.name.startswith(".") or path.name in _BESIDE or "__MACOSX" in path.parts

"""Many images in one body: told apart, whatever they came in.

Owns: what curl -F sends (multipart/form-data, RFC 7578), zip and tar archives, and a single image.
Leaves to others: whether each is an image at all (picture), keeping them (service).

The form is seen from the first bytes: a method is given a body, not its Content-Type.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import mesh

#: Images of one album, and bytes of them together once they are unpacked: a small archive can hold a large nothing.
MOST_IMAGES: Final = 2000
MOST_BYTES: Final = 256 * 2**20


class BadParcel(mesh.ServiceError):
    """The body holds no images that can be told apart."""

    code = "bad_parcel"
    status = 422


class Part(NamedTuple):
    """One file of the body."""

    name: str
    content: bytes


def unpack(body: bytes) -> list[Part]:
    """The files in a body, in order.

    Raises:
        BadParcel: it holds none, too many, or is damaged.
    """
    try:
        parts = list(_bounded(_files(body)))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, NotImplementedError, RuntimeError) as exc:
        raise BadParcel(f"the archive cannot be read: {exc}") from exc
    if not parts:
        raise BadParcel("there is no file in it; send images as multipart/form-data, or in a zip or tar archive")
    return parts


def _files(body: bytes) -> Iterator[Part]:
    if body[:2] == b"--":
        return _multipart(body)
    if body[:4] == b"PK\x03\x04":
        return _zip(body)
    if body[257:262] == b"ustar" or body[:2] == b"\x1f\x8b":
        return _tar(body)
    return iter([Part("image", body)] if body else [])


def _bounded(parts: Iterator[Part]) -> Iterator[Part]:
    size = 0
    for count, part in enumerate(parts, 1):
        size += len(part.content)
        if count > MOST_IMAGES or size > MOST_BYTES:
            raise BadParcel(f"an album holds at most {MOST_IMAGES} images of {MOST_BYTES >> 20} MiB together")
        yield part


def _zip(body: bytes) -> Iterator[Part]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                if entry.file_size > MOST_BYTES:
                    raise BadParcel(f"{entry.filename} is too large")
                yield Part(_base(entry.filename), archive.read(entry))


def _tar(body: bytes) -> Iterator[Part]:
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        for entry in archive:
            file = archive.extractfile(entry) if entry.isreg() and entry.size <= MOST_BYTES else None
            if file is not None:
                yield Part(_base(entry.name), file.read())


def _multipart(body: bytes) -> Iterator[Part]:
    boundary, _, rest = body.partition(b"\r\n")
    if not 2 < len(boundary) <= 72:  # RFC 2046: 70 characters after the dashes
        raise BadParcel("the body begins like multipart/form-data, but has no boundary")
    for piece in (b"\r\n" + rest).split(b"\r\n" + boundary)[:-1]:
        head, found, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if not found:
            raise BadParcel("a part of the multipart body has no end of its headers")
        message = Message()
        for line in head.decode("utf-8", "replace").split("\r\n"):
            name, _, value = line.partition(":")
            message[name.strip()] = value.strip()
        filename = message.get_filename()
        if filename:  # a field without a file is not an image
            yield Part(_base(filename), content)


def _base(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name[:200] or "image"

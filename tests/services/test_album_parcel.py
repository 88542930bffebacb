"""services.thumbnails.parcel: many files in one body."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.thumbnails import parcel
from services.thumbnails.parcel import BadParcel, ParcelTooLarge, Part, unpack

FILES = [("b.jpg", b"\r\n--" + b"\xff\xd8" * 300), ("empty.png", b""), ("ä b.png", b"\x89PNG\r\n\r\n--x--\r\n")]
PARTS = [Part(*file) for file in FILES]


def form(files: list[tuple[str, bytes]], boundary: str = "------------------------d74496d66958873e") -> bytes:
    """As curl -F sends it."""
    pieces = []
    for name, content in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        pieces.append(head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + content + b"\r\n")
    return b"".join([*pieces, f"--{boundary}--\r\n".encode()])


def zipped(files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return file.getvalue()


def tarred(files: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    "body", [form(FILES), zipped(FILES), tarred(FILES), tarred(FILES, "w:gz")], ids=["form", "zip", "tar", "tar.gz"]
)
def test_every_form_gives_its_files_in_order(body: bytes) -> None:
    """Names and bytes are as they were, also where the bytes look like a boundary."""
    assert unpack(body) == PARTS


def test_one_image_is_an_album_of_one() -> None:
    """What is no form and no archive is taken as an image; whether it is one is found out later."""
    assert unpack(b"\xff\xd8\xff") == [Part("image", b"\xff\xd8\xff")]


def test_directories_and_what_file_managers_hide_are_left_out() -> None:
    """Paths are cut off: an album has no directories, and nobody climbs."""
    files = [
        ("trip/", b""),
        ("trip/../../etc/a.jpg", b"1"),
        ("c:\\pictures\\b.jpg", b"2"),
        ("__MACOSX/trip/._a.jpg", b"x"),
        ("trip/.DS_Store", b"x"),
        ("trip/Thumbs.db", b"x"),
    ]
    assert unpack(zipped(files)) == [Part("a.jpg", b"1"), Part("b.jpg", b"2")]
    assert unpack(tarred(files[1:])) == [Part("a.jpg", b"1"), Part("b.jpg", b"2")]


def test_an_archive_is_known_by_its_mark_before_its_first_name() -> None:
    """A tar archive begins with a file's name, and a file may be called anything."""
    files = [("--a.jpg", b"1")]
    for body in (tarred(files), tarred(files, "w:gz"), zipped(files), form(files)):
        assert unpack(body) == [Part("--a.jpg", b"1")]


def test_fields_that_are_no_files_are_left_out() -> None:
    """curl -F title=Trip beside the images, and a form that is sent with nothing chosen."""
    title = b'--b\r\nContent-Disposition: form-data; name="title"\r\n\r\nTrip\r\n'
    unchosen = b'--b\r\nContent-Disposition: form-data; name="image"; filename=""\r\n\r\n\r\n'
    assert unpack(title + unchosen + form([("a.jpg", b"1")], "b")) == [Part("a.jpg", b"1")]
    with pytest.raises(BadParcel):
        unpack(title + b"--b--")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        zipped([]),
        zipped([("only/", b"")]),
        b"--",
        b"--" + b"x" * 71 + b"\r\n",
        b"--b--\r\n",
        form(FILES)[:-10],
        form(FILES)[:400],
        b"--b\r\nno headers\r\n--b--\r\n",
        zipped(FILES)[:-30],
        tarred(FILES)[:700],
        tarred(FILES, "w:gz")[:-30],
        gzip.compress(b"\xff\xd8\xff", mtime=0),
    ],
    ids=range(13),  # what is packed holds the time
)
def test_what_cannot_be_told_apart_is_refused_with_the_reason(body: bytes) -> None:
    """Above all: nothing that was cut off on its way becomes a smaller album."""
    with pytest.raises(BadParcel) as caught:
        unpack(body)
    assert caught.value.code == "bad_parcel"


def test_an_archive_with_a_password_is_refused() -> None:
    """The bit in its heads that says so is enough."""
    body = bytearray(zipped([("a.jpg", b"1")], zipfile.ZIP_STORED))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        body[body.index(mark) + offset] |= 1
    with pytest.raises(BadParcel, match="password"):
        unpack(bytes(body))


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes that unpack to more than an album may be, in one file or in many."""
    monkeypatch.setattr(parcel, "MOST_IMAGE_BYTES", 2**20)
    monkeypatch.setattr(parcel, "MOST_BYTES", 4 * 2**20)
    one = [("one.bmp", bytes(2**20 + 1))]
    for body in (zipped(one), tarred(one, "w:gz"), form(one)):
        with pytest.raises(ParcelTooLarge, match=r"'one\.bmp' .*1,048,577 .* 1 MiB"):
            unpack(body)
    many = [(str(number), bytes(2**20)) for number in range(5)]
    for body in (zipped(many), tarred(many, "w:gz"), gzip.compress(bytes(40 * 2**20), compresslevel=1)):
        with pytest.raises(ParcelTooLarge, match=" 4 MiB"):
            unpack(body)


def test_too_many_files_are_refused() -> None:
    """In each form."""
    many = [(f"{number}.jpg", b"") for number in range(parcel.MOST_IMAGES + 1)]
    for body in (form(many), zipped(many), tarred(many)):
        with pytest.raises(ParcelTooLarge, match=" 2000 "):
            unpack(body)
    assert len(unpack(form(many[1:]))) == parcel.MOST_IMAGES


NAMES = st.text("abcäß ._-()", min_size=1, max_size=20).map(str.strip).filter(lambda name: name[:1] not in ("", "."))
CONTENTS = st.binary(max_size=200) | st.sampled_from(
    [b"\r\n", b"--b", b"\r\n--b", b"\r\n--b-", b"--b--", b"\r\n--bx\r\n"]
)


@given(st.lists(st.tuples(NAMES, CONTENTS), min_size=1, max_size=5))
def test_what_was_packed_is_unpacked(files: list[tuple[str, bytes]]) -> None:
    """Any content survives any form."""
    parts = [Part(*file) for file in files]
    assert unpack(form(files, "bb")) == parts
    assert unpack(tarred(files)) == parts
    if len({name for name, _ in files}) == len(files):  # zipfile warns of twins when it writes
        assert unpack(zipped(files)) == parts


def damaged(draw: st.DrawFn) -> bytes:
    body = bytearray(draw(st.sampled_from([form(FILES), zipped(FILES), tarred(FILES), tarred(FILES, "w:gz")])))
    for _ in range(draw(st.integers(1, 8))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    at, length = draw(st.integers(0, len(body))), draw(st.integers(0, 40))
    if draw(st.booleans()):
        del body[at : at + length]
    return bytes(body)


GARBAGE = st.tuples(st.sampled_from([b"", b"--b\r\n", b"PK\x03\x04", b"\x1f\x8b\x08"]), st.binary(max_size=2000))


@settings(max_examples=300, deadline=None)
@given(st.composite(damaged)() | GARBAGE.map(b"".join))
def test_garbage_is_refused_as_a_bad_parcel_and_as_nothing_else(body: bytes) -> None:
    """Whatever comes: some parts, or BadParcel; and soon."""
    try:
        parts = unpack(body)
    except BadParcel:
        return
    assert parts
    assert sum(len(part.content) for part in parts) <= parcel.MOST_BYTES


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=12, max_size=12), st.sampled_from("gxLKS50"))
def test_a_tar_that_lies_about_a_size_leads_nowhere(size: bytes, kind: str) -> None:
    """Negative, enormous and senseless sizes, in entries of every kind, with a checksum that is right."""
    body = bytearray(tarred(FILES))
    body[124:136], body[156:157], body[148:156] = size, kind.encode(), b" " * 8
    body[148:156] = b"%06o\0 " % sum(body[:512])
    try:
        unpack(bytes(body))
    except BadParcel:
        pass

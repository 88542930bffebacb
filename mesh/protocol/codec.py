"""Messages to frames and back.

Owns: packing many messages into one frame, large bodies as frames of their own, and checking what comes in against
the grammar. Leaves to others: which message is legal when (caller, callee, link), sockets (transport).

Source: docs/wire.md, "Frames".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgpack

from mesh.errors import ProtocolViolation
from mesh.protocol.messages import CALL, ENCODINGS, ERROR, EVENT, GRAMMAR, ITEM, NAMES, OPEN, REFUSED, REPLY

Buffer = bytes | bytearray | memoryview

#: Bodies above this travel as frames of their own: past it, a copy costs more than a frame does.
INLINE_BYTES: Final = 64 * 1024
#: A frame is sealed and a new one begun when it holds this much, so that a flood never waits for one huge send.
SEAL_BYTES: Final = 256 * 1024
#: What one unpacker may be asked to hold for one value. msgpack allocates an array of the length that its header
#: claims before it has seen an element: 4,096 keeps the worst nesting of such lies at some 33 MB, soon freed.
MAX_ARRAY: Final = 4096
MAX_MAP: Final = 1024
MAX_STR: Final = 256 * 1024
MAX_BIN: Final = 1024 * 1024
#: Frame 0 of a message. A writer seals at SEAL_BYTES and an event's body is at most MAX_BIN, so an honest one stays
#: below. A hostile one may be 2 MiB of empty arrays, which Python holds in 80 bytes each: 160 MB until it is refused.
MAX_FRAME: Final = 2 * 1024 * 1024
#: The map of an error; a writer leaves out details that are longer.
MAX_ERROR: Final = 64 * 1024
#: What an unpacker's buffer begins with. msgpack takes 1 MiB otherwise, for every link, and uses all of it in turn.
BUFFER_BYTES: Final = 64 * 1024
#: What a packer's buffer begins with; it grows as needed. msgpack takes 256 KiB otherwise, for every link.
PACKED_BYTES: Final = 16 * 1024


NIL: Final = b"\xc0"


class Writer:
    """Collects the messages for one peer and hands them over as few frames as possible.

    One writer belongs to one connection. Nothing is sent by it; `take` gives what should be.
    """

    __slots__ = ("_big", "_pack", "_packer", "_sealed", "_size")

    def __init__(self) -> None:
        self._packer = msgpack.Packer(autoreset=False, buf_size=PACKED_BYTES)
        self._pack = self._packer.pack
        self._big: list[Buffer] = []
        self._sealed: list[list[Buffer]] = []
        self._size = 0

    def add(self, *message: Any) -> None:
        """Append a small message: its kind, then its fields."""
        self._pack(message)
        self._size = size = self._size + 64
        if size > SEAL_BYTES:
            self._seal()

    def expect(self, size: int) -> None:
        """Count what the next message holds beside its body, so that its frame is sealed in time."""
        self._size += size

    def add_small(self, *message: Any) -> None:
        """Append a message whose body, the last field, is at most INLINE_BYTES long: the path of nearly every call."""
        self._pack(message)
        self._size = size = self._size + len(message[-1]) + 64
        if size > SEAL_BYTES:
            self._seal()

    def add_body(self, head: tuple[Any, ...], body: Buffer, tail: tuple[Any, ...] = ()) -> None:
        """Append a message whose body stands between `head` and `tail`; a large one becomes a frame of its own."""
        size = len(body)
        if size <= INLINE_BYTES:
            self._pack((*head, body, *tail))
            self._size += size + 64
            if self._size > SEAL_BYTES:
                self._seal()
        else:
            self._pack((*head, len(self._big), *tail))
            self._big.append(body)
            # A large body closes its message: those behind it need not wait for its bytes to be read.
            self._seal()

    def _seal(self) -> None:
        self._sealed.append([self._packer.bytes(), *self._big])
        self._packer.reset()
        self._big = []
        self._size = 0

    def take(self) -> list[list[Buffer]]:
        """The messages that wait to leave, each a list of frames, frame 0 first. Empties the writer."""
        if self._size:
            self._seal()
        sealed = self._sealed
        if sealed:
            self._sealed = []
        return sealed

    def __bool__(self) -> bool:
        return bool(self._size or self._sealed)


#: What a look at the types of a message's fields may find; 0: all is said.
ILLEGAL: Final = 1
REFERS: Final = 2  # its body is the number of a further frame
FURTHER: Final = 4  # it is long enough to have an encoding or metadata, whose values are looked at

#: Where `encoding` stands, in the messages that have one.
_ENCODING_AT: Final = {CALL: 5, OPEN: 6, REPLY: 3, ITEM: 3, EVENT: 6}


def _places() -> dict[int, dict[str, int]]:
    """kind -> where its body, encoding and map stand in the message."""
    places: dict[int, dict[str, int]] = {}
    for kind, (_, _, fields) in GRAMMAR.items():
        at: dict[str, int] = {}
        for position, field in enumerate(fields, start=1):
            types = field if isinstance(field, tuple) else (field,)
            if bytes in types:
                at["body"] = position
            elif dict in types:
                at["map"] = position
        if kind in _ENCODING_AT:
            at["encoding"] = _ENCODING_AT[kind]
        places[kind] = at
    return places


_PLACES: Final = _places()


def _signatures() -> dict[int, dict[tuple[type, ...], int]]:
    """kind -> every legal tuple of element types -> what is to be looked at besides.

    Checking a message is then one tuple of its types and one look-up, however many fields it has.
    """
    table: dict[int, dict[tuple[type, ...], int]] = {}
    for kind, (_, required, fields) in GRAMMAR.items():
        legal: dict[tuple[type, ...], int] = {}
        choices = [field if isinstance(field, tuple) else (field,) for field in fields]
        places = _PLACES[kind]
        further = min(places.get("encoding", 99), places.get("map", 99))
        for length in range(required, len(fields) + 1):
            for types in itertools.product(*choices[:length]):
                refers = "body" in places and length >= places["body"] and types[places["body"] - 1] is int
                legal[(int, *types)] = (REFERS if refers else 0) | (FURTHER if length >= further else 0)
        table[kind] = legal
    return table


#: kind -> the look-up of its signatures.
_CHECKS: Final = {kind: legal.get for kind, legal in _signatures().items()}


#: What an error map says in words. Its other values are read leniently where they are used.
_ERROR_TEXTS: Final = ("code", "message", "type")


class Reader:
    """Reads the messages of one connection, checking each against the grammar."""

    __slots__ = ("_checks", "_unpacker")

    def __init__(self, kinds: Iterable[int] | None = None) -> None:
        """`kinds`: those that this end of the connection may hear; others are refused by name. None: all."""
        self._checks = _CHECKS if kinds is None else {kind: _CHECKS[kind] for kind in kinds}
        self._fresh()

    def _fresh(self) -> None:
        self._unpacker = msgpack.Unpacker(
            raw=False,
            strict_map_key=False,
            max_buffer_size=MAX_FRAME,
            max_array_len=MAX_ARRAY,
            max_map_len=MAX_MAP,
            max_str_len=MAX_STR,
            max_bin_len=MAX_BIN,
            max_ext_len=0,
            read_size=BUFFER_BYTES,
        )

    def read(self, frames: list[Buffer]) -> list[list[Any]]:
        """The messages of one ZeroMQ message, in order, each `[kind, *fields]`.

        Args:
            frames: frame 0 (a sequence of MessagePack arrays), then the large bodies it refers to. A body field comes
                back as the bytes or memoryview itself, whichever way it travelled.

        Raises:
            ProtocolViolation: anything that docs/wire.md does not allow; the reader can be used again.
        """
        referred = 0
        checks = self._checks
        try:
            unpacker = self._unpacker
            unpacker.feed(frames[0])
            # An unpacker does not say whether it stopped between two values or inside one. A nil behind the frame
            # does: it comes out as a value of its own, unless the frame left something open that swallowed it.
            unpacker.feed(NIL)
            messages: list[list[Any]] = list(iter(unpacker.unpack, None))
            if unpacker.read_bytes(1):
                raise ProtocolViolation("a nil stands where a message should")
            for message in messages:
                # A map or a string has elements too; taken for a message, it would break whoever reads its fields.
                if type(message) is not list:
                    raise ProtocolViolation(f"a {type(message).__name__} stands where a message should")
                found = checks[message[0]](tuple(map(type, message)), ILLEGAL)
                if found:
                    if found == ILLEGAL:
                        raise _refusal(message)
                    if found & REFERS:
                        at = _PLACES[message[0]]["body"]
                        if message[at] != referred:
                            raise ProtocolViolation(
                                f"{NAMES[message[0]]}: body is frame {message[at]}, in order it would be {referred}"
                            )
                        referred += 1
                        message[at] = frames[referred]
                    if found & FURTHER:
                        _check_further(message)
            if referred != len(frames) - 1:
                raise ProtocolViolation(f"{len(frames) - 1} large bodies came, {referred} are referred to")
        except ProtocolViolation:
            self._fresh()
            raise
        except msgpack.OutOfData as exc:
            self._fresh()
            raise ProtocolViolation("frame 0 ends in the middle of a message") from exc
        except (KeyError, IndexError, TypeError) as exc:
            # An array that is no array, an unknown or unhashable kind, a reference past the last frame.
            self._fresh()
            raise ProtocolViolation(_unknown(exc)) from exc
        except (ValueError, OverflowError, MemoryError, RecursionError, msgpack.UnpackException) as exc:
            self._fresh()
            raise ProtocolViolation(
                f"frame 0 is not a sequence of MessagePack arrays: {type(exc).__name__}: {exc}"
            ) from exc
        return messages


def _check_further(message: list[Any]) -> None:
    """The values of an encoding and of a map, once their types are right."""
    kind = message[0]
    count = len(message)
    places = _PLACES[kind]
    at = places.get("encoding", count)
    if at < count and not 0 <= message[at] < len(ENCODINGS):
        raise ProtocolViolation(f"{NAMES[kind]}: unknown encoding {message[at]}")
    at = places.get("map", count)
    if at >= count or message[at] is None:
        return
    if kind == ERROR or kind == REFUSED:
        for key, value in message[at].items():
            if type(key) is not str or (key in _ERROR_TEXTS and type(value) is not str):
                raise ProtocolViolation(f"{NAMES[kind]}: {', '.join(_ERROR_TEXTS)} must be strings, as all keys")
        return
    for key, value in message[at].items():
        if type(key) is not str or type(value) is not str:
            raise ProtocolViolation(f"{NAMES[kind]}: metadata must map strings to strings")


def text_size(meta: dict[str, str]) -> int:
    """About how many bytes metadata takes."""
    return sum(map(len, meta)) + sum(map(len, meta.values())) + 4 * len(meta)


_trial: Final = msgpack.Packer()


def error_map(wire: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """An error's map such as every reader takes it, and its length in bytes.

    What a service puts into an error must not cost others their link: details that no reader takes (too long, too
    many, a number beyond 64 bits) are left out, and it is said that they were.
    """
    for key in _ERROR_TEXTS:
        if type(wire.get(key)) is not str:
            wire[key] = str(wire.get(key))
    try:
        packed = _trial.pack(wire)
        if len(packed) <= MAX_ERROR:
            if "details" in wire:
                msgpack.unpackb(packed, strict_map_key=False, max_array_len=MAX_ARRAY, max_map_len=MAX_MAP)
            return wire, len(packed)
        fault = f"{len(packed)} bytes of {MAX_ERROR}"
    except (ValueError, OverflowError, TypeError, RecursionError) as exc:
        fault = str(exc)[:200]
    told = {key: wire[key].encode("utf-8", "replace").decode()[:4000] for key in _ERROR_TEXTS}
    safe: dict[str, Any] = {**told, "retry": wire.get("retry") is True, "details": {"omitted": fault}}
    status = wire.get("status")
    if isinstance(status, int) and 400 <= status <= 599:
        safe["status"] = int(status)
    return safe, len(_trial.pack(safe))


def _refusal(message: Any) -> ProtocolViolation:
    name, required, fields = GRAMMAR[message[0]]
    if not required <= len(message) - 1 <= len(fields):
        return ProtocolViolation(f"{name}: {len(message) - 1} fields came, {required} to {len(fields)} are legal")
    got = ", ".join(type(field).__name__ for field in message[1:])
    return ProtocolViolation(f"{name}: fields of the wrong types ({got})")


def _unknown(exc: Exception) -> str:
    if isinstance(exc, KeyError):
        if exc.args[0] in NAMES:
            return f"{NAMES[exc.args[0]]}: not for this end of a link"
        return f"unknown kind of message: {exc.args[0]!r}"[:200]
    return "not a sequence of MessagePack arrays that begin with a known kind"


def one(*message: Any) -> bytes:
    """A frame of exactly one small message: for tests and for what is sent rarely."""
    packed = msgpack.packb(message)
    assert isinstance(packed, bytes)
    return packed


def iterate(frame: bytes) -> Iterator[list[Any]]:
    """The messages of a frame without large bodies."""
    yield from Reader().read([frame])

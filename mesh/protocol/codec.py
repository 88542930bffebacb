"""Encodes messages into frames and decodes them.

Owns: packing many messages into one frame, large bodies as frames of their own, and checking received messages against
the grammar. Leaves to others: which message is legal when (caller, callee, link), sockets (transport).

Source: docs/wire.md, "Frames".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgpack

from mesh.errors import ProtocolViolation
from mesh.protocol.messages import CALL, ENCODINGS, ERROR, EVENT, GRAMMAR, ITEM, NAMES, OPEN, REFUSED, REPLY

Buffer = bytes | bytearray | memoryview

#: Bodies above this size are sent as frames of their own: copying them would cost more than a frame does.
INLINE_BYTES: Final = 64 * 1024
#: A frame is sealed and a new one begun at this size, so that many messages never wait for one huge send.
SEAL_BYTES: Final = 256 * 1024
#: The limits of one value in an unpacker. msgpack allocates an array of the length in its header before it has read an
#: element: 4,096 limits the worst nesting of false headers to about 33 MB, which is freed soon.
MAX_ARRAY: Final = 4096
MAX_MAP: Final = 1024
MAX_STR: Final = 256 * 1024
MAX_BIN: Final = 1024 * 1024
#: The largest frame 0 of a message. A writer seals at SEAL_BYTES and an event's body is at most MAX_BIN, so legitimate
#: frames are smaller. A hostile one may be 2 MiB of empty arrays, for which Python uses 80 bytes each: 160 MB until it
#: is refused.
MAX_FRAME: Final = 2 * 1024 * 1024
#: The largest map of an error, encoded; a writer omits the details of larger ones.
MAX_ERROR: Final = 64 * 1024
#: The initial buffer of an unpacker. msgpack's default is 1 MiB for every link, all of which it comes to use.
BUFFER_BYTES: Final = 64 * 1024
#: The initial buffer of a packer; it grows as needed. msgpack's default is 256 KiB for every link.
PACKED_BYTES: Final = 16 * 1024


NIL: Final = b"\xc0"


class Writer:
    """Collects the messages for one peer and packs them into as few frames as possible.

    A writer belongs to one connection. It sends nothing itself; `take` returns the frames to send.
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
        """Add the size of the next message without its body, so that its frame is sealed in time."""
        self._size += size

    def add_small(self, *message: Any) -> None:
        """Append a message with a body of at most INLINE_BYTES as its last field: the path of nearly every call."""
        self._pack(message)
        self._size = size = self._size + len(message[-1]) + 64
        if size > SEAL_BYTES:
            self._seal()

    def add_body(self, head: tuple[Any, ...], body: Buffer, tail: tuple[Any, ...] = ()) -> None:
        """Append a message with a body between `head` and `tail`; a large body becomes a frame of its own."""
        size = len(body)
        if size <= INLINE_BYTES:
            self._pack((*head, body, *tail))
            self._size += size + 64
            if self._size > SEAL_BYTES:
                self._seal()
        else:
            self._pack((*head, len(self._big), *tail))
            self._big.append(body)
            # A large body ends its ZeroMQ message: later messages need not wait until its bytes are read.
            self._seal()

    def _seal(self) -> None:
        self._sealed.append([self._packer.bytes(), *self._big])
        self._packer.reset()
        self._big = []
        self._size = 0

    def take(self) -> list[list[Buffer]]:
        """The ZeroMQ messages to send, each a list of frames, frame 0 first. Empties the writer."""
        if self._size:
            self._seal()
        sealed = self._sealed
        if sealed:
            self._sealed = []
        return sealed

    def __bool__(self) -> bool:
        return bool(self._size or self._sealed)


#: Results of checking the types of a message's fields; 0: the message is legal.
ILLEGAL: Final = 1
REFERS: Final = 2  # the body is the number of a further frame
FURTHER: Final = 4  # the message has an encoding or metadata, with values that must be checked

#: The position of `encoding`, in the messages that have one.
_ENCODING_AT: Final = {CALL: 5, OPEN: 6, REPLY: 3, ITEM: 3, EVENT: 6}


def _places() -> dict[int, dict[str, int]]:
    """kind -> the positions of body, encoding and map in the message."""
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
    """kind -> every legal tuple of element types -> the further checks (REFERS, FURTHER).

    Checking a message then takes one tuple of its types and one look-up, regardless of the number of fields.
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


#: The text fields of an error map. Its other values are read leniently where they are used.
_ERROR_TEXTS: Final = ("code", "message", "type")


class Reader:
    """Reads the messages of one connection, checking each against the grammar."""

    __slots__ = ("_checks", "_unpacker")

    def __init__(self, kinds: Iterable[int] | None = None) -> None:
        """`kinds`: the kinds that this end of the connection accepts; others are refused by name. None: all."""
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
            frames: frame 0 (a sequence of MessagePack arrays), then the large bodies to which it refers. A body field
                is returned as bytes or memoryview, whether it was inline or a frame of its own.

        Raises:
            ProtocolViolation: docs/wire.md does not allow the message; the reader can be used again.
        """
        referred = 0
        checks = self._checks
        try:
            unpacker = self._unpacker
            unpacker.feed(frames[0])
            # An unpacker does not report whether it stopped between two values or inside one. A nil after the frame
            # shows it: the nil is a value of its own, unless it became part of an incomplete value.
            unpacker.feed(NIL)
            messages: list[list[Any]] = list(iter(unpacker.unpack, None))
            if unpacker.read_bytes(1):
                raise ProtocolViolation("found nil instead of a message")
            for message in messages:
                # A map or a string also has elements; code that reads its fields as those of a message would fail.
                if type(message) is not list:
                    raise ProtocolViolation(f"found a {type(message).__name__} instead of a message")
                found = checks[message[0]](tuple(map(type, message)), ILLEGAL)
                if found:
                    if found == ILLEGAL:
                        raise _refusal(message)
                    if found & REFERS:
                        at = _PLACES[message[0]]["body"]
                        if message[at] != referred:
                            raise ProtocolViolation(
                                f"{NAMES[message[0]]}: body refers to frame {message[at]}; "
                                f"the next frame in order is {referred}"
                            )
                        referred += 1
                        message[at] = frames[referred]
                    if found & FURTHER:
                        _check_further(message)
            if referred != len(frames) - 1:
                raise ProtocolViolation(
                    f"received {len(frames) - 1} large bodies, but the messages refer to {referred}"
                )
        except ProtocolViolation:
            self._fresh()
            raise
        except msgpack.OutOfData as exc:
            self._fresh()
            raise ProtocolViolation("frame 0 ends in the middle of a message") from exc
        except (KeyError, IndexError, TypeError) as exc:
            # Not an array, an unknown or unhashable kind, or a reference past the last frame.
            self._fresh()
            raise ProtocolViolation(_unknown(exc)) from exc
        except (ValueError, OverflowError, MemoryError, RecursionError, msgpack.UnpackException) as exc:
            self._fresh()
            raise ProtocolViolation(
                f"frame 0 is not a sequence of MessagePack arrays: {type(exc).__name__}: {exc}"
            ) from exc
        return messages


def _check_further(message: list[Any]) -> None:
    """Check the values of an encoding and of a map, given that their types are right."""
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
                raise ProtocolViolation(
                    f"{NAMES[kind]}: {', '.join(_ERROR_TEXTS)} must be strings, and so must all keys"
                )
        return
    for key, value in message[at].items():
        if type(key) is not str or type(value) is not str:
            raise ProtocolViolation(f"{NAMES[kind]}: metadata must map strings to strings")


def text_size(meta: Mapping[str, str]) -> int:
    """The approximate size of metadata in bytes."""
    return sum(map(len, meta)) + sum(map(len, meta.values())) + 4 * len(meta)


_trial: Final = msgpack.Packer()


def error_map(wire: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """An error's map in a form that every reader accepts, and its length in bytes.

    The details of a service's error must not close the link for other calls: details that readers refuse (too long, too
    many, a number beyond 64 bits) are replaced by `{"omitted": reason}`.
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
        return ProtocolViolation(f"{name}: received {len(message) - 1} fields; {required} to {len(fields)} are legal")
    got = ", ".join(type(field).__name__ for field in message[1:])
    return ProtocolViolation(f"{name}: fields of the wrong types ({got})")


def _unknown(exc: Exception) -> str:
    if isinstance(exc, KeyError):
        if exc.args[0] in NAMES:
            return f"{NAMES[exc.args[0]]}: not legal for this end of a link"
        return f"unknown kind of message: {exc.args[0]!r}"[:200]
    return "not a sequence of MessagePack arrays that begin with a known kind"


def one(*message: Any) -> bytes:
    """A frame of exactly one small message: for tests and for rare messages."""
    packed = msgpack.packb(message)
    assert isinstance(packed, bytes)
    return packed


def iterate(frame: bytes) -> Iterator[list[Any]]:
    """The messages of a frame without large bodies."""
    yield from Reader().read([frame])

"""The kinds of message and the grammar of each: docs/wire.md as a table.

Owns: numbers, names, fields and their types.
Leaves to others: bytes (codec), which message is legal when and in which direction (caller, callee, link).

A message is a MessagePack array `[kind, …fields]`. Trailing optional fields may be omitted. A message with more fields
than the table has is refused, so a change of the grammar requires a new version.
"""

from __future__ import annotations

from typing import Any, Final

#: The version of this grammar, sent in `hello`. A peer with another version is refused, with its identity in the error.
VERSION: Final = 1

# --- a link -------------------------------------------------------------------------------------
HELLO: Final = 1
WELCOME: Final = 2
GOODBYE: Final = 3
PING: Final = 4
PONG: Final = 5
REJECT: Final = 6
# --- calls and streams ----------------------------------------------------------------------------
CALL: Final = 16
OPEN: Final = 17
CANCEL: Final = 18
CREDIT: Final = 19
REPLY: Final = 20
ERROR: Final = 21
REFUSED: Final = 22
ITEM: Final = 23
END: Final = 24
# --- events over PUB/SUB ----------------------------------------------------------------------------
EVENT: Final = 32
# --- the registry -----------------------------------------------------------------------------------
REGISTER: Final = 48
REGISTERED: Final = 49
RENEW: Final = 50
UNKNOWN: Final = 51
LEAVE: Final = 52
WATCH: Final = 53
SNAPSHOT: Final = 54
CHANGE: Final = 55
LEARNED: Final = 56
LOADS: Final = 57

# --- encodings of a body ----------------------------------------------------------------------------
MSGPACK: Final = 0
JSON: Final = 1
RAW: Final = 2
ENCODINGS: Final = ("msgpack", "json", "raw")
#: Metadata of a call that requests another encoding for its answer than that of its arguments, and its only value.
ANSWER: Final = "mesh.answer"
MSGPACK_ANSWER: Final = "msgpack"
#: Metadata of a stream with a reader that reconnects by itself when the stream ends with `draining`, like a browser.
RECONNECTS: Final = "mesh.reconnects"
#: Metadata of a call with the body of an HTML form as its client stream: its Content-Type.
FORM: Final = "mesh.form"
#: Metadata of a copy of a call, with an answer that is only compared. The handler sees it, too.
MIRROR: Final = "mesh.mirror"

_INT = int
_BODY = (bytes, int)  # the bytes, or the number of the frame that contains them
_OPT_STR = (str, type(None))
_OPT_MAP = (dict, type(None))

#: kind -> (name, number of required fields after the kind, types of all fields in order).
GRAMMAR: Final[dict[int, tuple[str, int, tuple[Any, ...]]]] = {
    # hello: version, identity, epoch, largest message in bytes that the sender accepts, metadata
    HELLO: ("hello", 4, (int, str, int, int, _OPT_MAP)),
    # welcome: version, identity, epoch, calls the caller may have under way, largest message, metadata
    WELCOME: ("welcome", 5, (int, str, int, int, int, _OPT_MAP)),
    # goodbye: reason. No new calls are accepted; calls under way will be answered.
    GOODBYE: ("goodbye", 1, (str,)),
    PING: ("ping", 1, (int,)),
    PONG: ("pong", 1, (int,)),
    # reject: code, reason. Sent instead of welcome, or before the sender closes the link.
    REJECT: ("reject", 2, (str, str)),
    # call: id, target "service.method", budget in ms, body, encoding, traceparent, metadata
    CALL: ("call", 4, (int, str, int, _BODY, int, _OPT_STR, _OPT_MAP)),
    # open: id, target, budget in ms, body, items the callee may send at once, encoding, traceparent, metadata
    OPEN: ("open", 5, (int, str, int, _BODY, int, int, _OPT_STR, _OPT_MAP)),
    CANCEL: ("cancel", 1, (int,)),
    # credit: id, further items that may be sent
    CREDIT: ("credit", 2, (int, int)),
    # reply: id, body, encoding, metadata
    REPLY: ("reply", 2, (int, _BODY, int, _OPT_MAP)),
    # error: id, {code, message, type, status, retry, details}. The handler ran.
    ERROR: ("error", 2, (int, dict)),
    # refused: id, the same map. The handler never started.
    REFUSED: ("refused", 2, (int, dict)),
    # item: id, body, encoding
    ITEM: ("item", 2, (int, _BODY, int)),
    END: ("end", 1, (int,)),
    # event: publisher, number within (publisher, topic), topic, ms since 1970, body, encoding, traceparent, metadata
    EVENT: ("event", 5, (str, int, str, int, _BODY, int, _OPT_STR, _OPT_MAP)),
    # register: request number, body (array of instance records)
    REGISTER: ("register", 2, (int, _BODY)),
    # registered: request number, lease in ms, renewal period in ms
    REGISTERED: ("registered", 3, (int, int, int)),
    # renew: array of [instance id, epoch, load]
    RENEW: ("renew", 1, (list,)),
    # unknown: array of instance ids that must register again
    UNKNOWN: ("unknown", 1, (list,)),
    # leave: array of [instance id, epoch]
    LEAVE: ("leave", 1, (list,)),
    WATCH: ("watch", 0, ()),
    # snapshot: hub id, hub epoch, number, still learning, body (array of instance records)
    SNAPSHOT: ("snapshot", 5, (str, int, int, bool, _BODY)),
    # change: number, body (array of new or changed records), array of [instance id, epoch, reason] that are gone
    CHANGE: ("change", 3, (int, _BODY, list)),
    # learned: number. From now on an instance that is not listed is gone.
    LEARNED: ("learned", 1, (int,)),
    # loads: body (array of [instance id, load]). Not numbered: the latest value counts.
    LOADS: ("loads", 1, (_BODY,)),
}

NAMES: Final = {kind: grammar[0] for kind, grammar in GRAMMAR.items()}

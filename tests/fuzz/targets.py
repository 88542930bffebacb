"""What is fuzzed: each target takes bytes, and raises only when mesh has a fault.

An error that mesh documents for wrong input is no fault; any other exception is, and so is an answer that contradicts a
second, simpler way to it. Hypothesis and atheris run the same targets.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

from mesh import config, http
from mesh.calls.signature import Signature
from mesh.config.env_file import read_env_file
from mesh.config.values import read_duration, read_size
from mesh.discovery.record import MethodRecord, RouteRecord
from mesh.engines.contract import Unit
from mesh.engines.sqlite.core import Core
from mesh.errors import ConfigError, MeshError, ProtocolViolation
from mesh.events.topics import BadTopic, check_pattern, check_topic, literal_prefix, matches
from mesh.gateway.binding import Binding, RpcBinding
from mesh.gateway.headers import read_request_id, read_timeout
from mesh.gateway.media import accepts, kind_of, wants_msgpack
from mesh.policy.access import Access
from mesh.protocol.codec import Reader, one
from mesh.protocol.messages import PING
from mesh.schedules.plan import BadPlan, due, parse
from mesh.service.http_sources import fields
from mesh.tasks.contract import Queue

Target = Callable[[bytes], None]


class Fault(AssertionError):
    """What a target found."""


def text_of(data: bytes) -> str:
    """Bytes as text: whatever is no UTF-8 becomes U+FFFD."""
    return data.decode(errors="replace")


def parts(data: bytes, count: int) -> list[bytes]:
    """So many pieces, split at bytes of zero; what is missing is empty."""
    found = data.split(b"\0", count - 1)
    return found + [b""] * (count - len(found))


# --- the wire -------------------------------------------------------------------------------------------------


def codec(data: bytes) -> None:
    """A frame and its bodies from a hostile peer."""
    reader = Reader()
    try:
        messages = reader.read(list(parts(data, 1 + data[0] % 3 if data else 1)))
    except ProtocolViolation:
        pass
    else:
        if not all(isinstance(message, list) and message for message in messages):
            raise Fault(f"the reader gave {messages!r}")
    # What was refused must leave nothing behind.
    good = reader.read([one(PING, 7)])
    if good != [[PING, 7]]:
        raise Fault(f"after {data!r} a good message was read as {good!r}")


# --- HTTP -----------------------------------------------------------------------------------------------------


class _Address(msgspec.Struct):
    street: str
    number: int = 0
    tags: list[str] = []


async def _mixed(
    id: int,
    name: str = "x",
    ratio: float | None = None,
    flags: list[bool] = [],  # noqa: B006
    side: Literal["left", "right"] = "left",
    data: bytes = b"",
    address: _Address | None = None,
) -> None: ...


async def _bytes(data: bytes) -> None: ...


async def _elsewhere(
    id: int,
    depth: Annotated[int, http.Header("X-Depth")] = 1,
    flags: Annotated[list[bool], http.Header("X-Flag")] = [],  # noqa: B006
    session: Annotated[str, http.Cookie] = "",
    address: _Address | None = None,
) -> None: ...


def _record(name: str, function: Callable[..., Any]) -> MethodRecord:
    signature = Signature(function, name, bound=True)
    elsewhere = fields(signature.parameters, name)._asdict()
    return MethodRecord(name=name, params=signature.params_schema, returns=signature.returns_schema, **elsewhere)


_MIXED: Final = _record("mixed", _mixed)
_FIELDS: Final = Binding(
    RouteRecord(
        "POST",
        "/x/{id}",
        "mixed",
        {"id": "path", "name": "query", "ratio": "query", "flags": "query", "side": "field", "address": "field"},
    ),
    _MIXED,
)
_WHOLE: Final = Binding(
    RouteRecord("POST", "/x/{id}", "mixed", {"id": "path", "side": "query", "flags": "query", "address": "body"}),
    _MIXED,
)
_QUERY: Final = Binding(
    RouteRecord("GET", "/x", "mixed", dict.fromkeys(("id", "name", "ratio", "flags", "side", "data"), "query")), _MIXED
)
_RPC: Final = (RpcBinding(_MIXED), RpcBinding(_record("bytes", _bytes)))
_ELSEWHERE: Final = RpcBinding(_record("elsewhere", _elsewhere))
_DECODERS: Final = {0: msgspec.msgpack.decode, 1: msgspec.json.decode}


def http_binding(data: bytes) -> None:
    """Path, query and body of a request, with each kind of body, at each kind of binding."""
    path, query, body = parts(data, 3)
    words = text_of(query)
    for kind in ("json", "msgpack", "other"):
        for bind in (
            lambda kind=kind: _FIELDS.bind([text_of(path)], words, body, kind),
            lambda kind=kind: _WHOLE.bind([text_of(path)], words, body, kind),
            lambda kind=kind: _QUERY.bind([], words, body, kind),
            *(lambda kind=kind, rpc=rpc: rpc.bind(words, body, kind) for rpc in _RPC),
            lambda kind=kind: _ELSEWHERE.bind(words, body, kind, _headers(text_of(path), words)),
        ):
            try:
                encoded, _ = bind()
            except MeshError as error:
                if not 400 <= error.status < 500:
                    raise Fault(f"{error!r} has status {error.status}") from error
            else:
                if not isinstance(encoded, bytes):
                    raise Fault(f"a call's body is {encoded!r}")


def _headers(one: str, other: str) -> CIMultiDictProxy[str]:
    lines = [("X-Depth", one), ("X-Flag", other), ("X-Flag", one), ("Cookie", other), ("Cookie", f"session={one}")]
    return CIMultiDictProxy(CIMultiDict(lines))


def http_headers(data: bytes) -> None:
    """Values of headers."""
    text = text_of(data)
    for read in (read_timeout, read_request_id):
        try:
            read(text)
        except MeshError as error:
            if error.status != 400:
                raise Fault(f"{error!r} has status {error.status}") from error
    try:
        kind_of(text)
    except MeshError as error:
        if error.status not in (400, 415):
            raise Fault(f"{error!r} has status {error.status}") from error
    accepts(text, frozenset({"text/event-stream"}))
    wants_msgpack(text)


# --- configuration --------------------------------------------------------------------------------------------


def settings(data: bytes) -> None:
    """A mesh.toml; what is accepted can be shown again, and who may call what be asked of it."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        file = Path(folder, "mesh.toml")
        file.write_bytes(data)
        try:
            found = config.load(file, env={})
        except ConfigError as error:
            if not error.message.strip():
                raise Fault("an error without a sentence") from error
            return
    if found.access is not None:
        access = Access(found.access.allow, found.access.serve)
        for caller in ("client", "orders@host-1", ""):
            access.allows(caller, "orders", "place")
            access.may_serve(caller, "orders")


def values(data: bytes) -> None:
    """Times and sizes as people write them, and files of environment variables."""
    text = text_of(data)
    for read in (read_duration, read_size):
        try:
            found = read(text)
        except ValueError:
            continue
        if not 0 <= found < math.inf:
            raise Fault(f"{text!r} was read as {found}")
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        file = Path(folder, "env")
        file.write_bytes(data)
        try:
            read_env_file(file)
        except (MeshError, ValueError):
            pass


# --- schedules, topics ----------------------------------------------------------------------------------------

_NOW: Final = 1_790_000_000.0


def schedule(data: bytes) -> None:
    """A plan as an engine kept it: its due times grow, and it reads back as itself."""
    try:
        plan = parse(text_of(data))
    except BadPlan:
        return
    again = parse(plan.text)
    if again.text != plan.text:
        raise Fault(f"{plan.text!r} reads back as {again.text!r}")
    times = [_NOW]
    for _ in range(5):
        following = plan.after(times[-1])
        if following is None:
            break
        times.append(following)
    if any(later <= earlier for earlier, later in pairwise(times)):
        raise Fault(f"{plan.text!r}: due times {times}")
    if len(times) > 2:
        found = due(plan, _NOW, times[2], "all")
        if found is None or found.run != times[1:3] or found.to_at != times[2]:
            raise Fault(f"{plan.text!r}: due at {times[1:3]}, to be run {found}")


def topics(data: bytes) -> None:
    """A pattern and a topic: the compiled matcher says what the definition says."""
    pattern, topic = (text_of(part) for part in parts(data, 2))
    try:
        check_pattern(pattern)
        check_topic(topic)
    except BadTopic:
        return
    wanted = _matches(pattern.split("."), topic.split("."))
    if matches(pattern, topic) is not wanted:
        raise Fault(f"{pattern!r} and {topic!r}: {not wanted}")
    if wanted and not topic.startswith(literal_prefix(pattern)):
        raise Fault(f"{topic!r} does not begin with {literal_prefix(pattern)!r}")


def _matches(pattern: Sequence[str], topic: Sequence[str]) -> bool:
    """`*` is one word, `#` any number of them."""
    reached = {0}
    for word in pattern:
        if word == "#":
            reached = set(range(min(reached, default=len(topic) + 1), len(topic) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(topic) and word in ("*", topic[at])}
    return len(topic) in reached


# --- the store ------------------------------------------------------------------------------------------------

_units: Final = msgspec.msgpack.Decoder(list[Unit])
_queue: Final = msgspec.msgpack.Decoder(Queue)


class Store:
    """An open file that units are committed to. A unit that is refused leaves no trace, and its neighbours are done."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mesh-")
        self._core = Core(Path(self._folder.name))
        self._core.open()
        self._count = 0

    def apply(self, units: Sequence[Unit]) -> None:
        """Between two good units, in one transaction."""
        self._count += 1
        good = [_good(f"{self._count}-{place}") for place in ("first", "last")]
        with self._core.turn(_NOW) as turn:
            outcomes = turn.apply([good[0], *units, good[1]])
        if len(outcomes) != len(units) + 2:
            raise Fault(f"{len(outcomes)} outcomes for {len(units) + 2} units")
        for outcome in (outcomes[0], outcomes[-1]):
            if outcome.error is not None:
                raise Fault(f"a good unit beside {units!r}: {outcome.error}")
        for outcome, unit in zip(outcomes[1:-1], units, strict=True):
            if outcome.error is not None and outcome.error["status"] >= 500:
                raise Fault(f"{unit!r}: {outcome.error}")
        # What was committed can be read, by everybody.
        self._core.queues(_NOW)
        for name, _ in self._core.namespaces(_NOW):
            self._core.page(name, wall=_NOW)

    def declare(self, queue: Queue) -> None:
        try:
            with self._core.turn(_NOW) as turn:
                turn.declare(queue)
        except MeshError as error:
            if error.status >= 500:
                raise Fault(f"{queue!r}: {error!r}") from error
        self._core.queues(_NOW)

    def close(self) -> None:
        self._core.close()
        self._folder.cleanup()


def _good(name: str) -> Unit:
    from mesh.state.contract import Write

    return Unit(f"good-{name}", writes=(Write("fuzz", "key", "set", f"etag-{name}", b"\xc0"),))


_store: list[Store] = []


def store(data: bytes) -> None:
    """What any process may send to the store: units, and what a worker says of its queues."""
    if not _store:
        _store.append(Store())
    try:
        units = _units.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    else:
        _store[0].apply(units)
    try:
        queue = _queue.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    _store[0].declare(queue)


TARGETS: Final[dict[str, Target]] = {
    "codec": codec,
    "http-binding": http_binding,
    "http-headers": http_headers,
    "settings": settings,
    "values": values,
    "schedule": schedule,
    "topics": topics,
    "store": store,
}

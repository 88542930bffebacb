"""The signature of a method: its annotations compiled once into decoders, encoders and JSON Schemas.

Owns: encoding and decoding arguments, encoding answers, and the error messages for wrong arguments.
Leaves to others: reading annotations (declared), when a body is decoded (server), what a decorator adds
(service.decorators), and the records that contain the schemas (service.describe).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import msgspec
from msgspec.structs import astuple

from mesh.calls.answers import typed_decoder
from mesh.calls.context import CURRENT
from mesh.calls.declared import BadDeclaration, Parameter, is_binary, read, returned, schema_of
from mesh.calls.forms import binding
from mesh.calls.forms.declared import schema_of_form
from mesh.calls.http_response import Response
from mesh.calls.inbound import BadItem
from mesh.calls.results import cannot_be_sent, checker, exact_type
from mesh.calls.server_event import ServerSentEvent, sealed
from mesh.errors import BadArguments, BadReply
from mesh.protocol.http_head import to_meta
from mesh.protocol.messages import JSON, MSGPACK, RAW
from mesh.suggest import suggest

Buffer = bytes | bytearray | memoryview

# Characters that an error message quotes: a hostile body may contain an argument name of a megabyte.
_QUOTED = 200
_MIXED: Final = msgspec.msgpack.Decoder(dict[int | str, msgspec.Raw])
_ARRAY: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_JSON_ARRAY: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODE: Final[dict[int, Callable[[Any], bytes]]] = {
    MSGPACK: msgspec.msgpack.Encoder().encode,
    JSON: msgspec.json.Encoder().encode,
}
_pack = _ENCODE[MSGPACK]
_BINARY: Final = (bytes, bytearray, memoryview)
# How a RAW body becomes an argument of each type; bytes() of a bytes object returns the same object, not a copy.
_BLOBS: Final[dict[Any, Callable[[Any], Any]]] = {bytes: bytes, bytearray: bytearray, memoryview: memoryview}
_BINARY_SCHEMA: Final = {"type": "string", "contentMediaType": "application/octet-stream"}


class Signature:
    """A function's arguments and answer, ready for the wire.

    Attributes:
        label: "greeting.count", the name in error messages.
        parameters: without `self`, in order of declaration.
        returns: type of the answer, or of each item of a stream; `Any` when not annotated.
        stream: the function is an async generator function.
        asynchronous: calling it gives an awaitable (False for a plain `def` and for a stream).
        inbound: the parameter for the items that the caller sends; it is not among `parameters`.
        events: it yields http.ServerSentEvents; `encoder` then gives an encoder that takes them.
        responds: it may return an http.Response; `encoder` then gives an encoder that takes one.
        binary: the answer is `bytes` and is sent without JSON or MessagePack around it.
        params_schema: JSON Schema (2020-12) of an object with one property per parameter; self-contained.
        returns_schema: JSON Schema of `returns`.
        inbound_schema: JSON Schema of each item that the caller sends, or of the form; None without `inbound`.
        form: the parameters that are an HTML form; its body is then `inbound`.
    """

    def __init__(
        self, function: Callable[..., Any], label: str = "", *, owner: type | None = None, bound: bool = False
    ) -> None:
        """Read `function`.

        Args:
            function: as written in a class, with `self` as its first parameter.
            bound: the function has no `self` parameter.
            owner: the class; annotations may use names that it defines.

        Raises:
            BadDeclaration: a parameter or the answer cannot be encoded, or an annotation cannot be resolved.
        """
        self.label = label or getattr(function, "__qualname__", repr(function))
        declared = read(function, self.label, owner, bound)
        self.parameters = declared.parameters
        self.returns = declared.returns
        self.stream = declared.stream
        self.asynchronous = declared.asynchronous
        self.responds = declared.responds
        self.inbound = declared.inbound
        self.form = declared.form
        self.events = declared.events
        self._positional = tuple(p.name for p in self.parameters if not p.keyword_only)
        self._required = sum(p.required for p in self.parameters if not p.keyword_only)
        blobs = [p for p in self.parameters if p.shape == "bytes"]
        self._blob = blobs[0] if len(blobs) == 1 else None
        array, named = self._structs()
        self.params_schema = self._schema_of_parameters(named)
        self.binary = is_binary(self.returns)
        self.returns_schema = dict(_BINARY_SCHEMA) if self.binary else schema_of(self.returns, self.label)
        self.inbound_schema: dict[str, Any] | None = None
        if self.inbound is not None:
            item = self.inbound.type
            self.inbound_schema = dict(_BINARY_SCHEMA) if is_binary(item) else schema_of(item, self.label)
        if self.form is not None:
            self.inbound_schema = schema_of_form(self.form)
        # With keyword-only parameters an array cannot fill the whole struct: such bodies go by name.
        self._whole = len(self._positional) == len(self.parameters)
        self._array = msgspec.msgpack.Decoder(array).decode
        self._named = msgspec.msgpack.Decoder(named).decode
        self._json_array = msgspec.json.Decoder(array).decode
        self._json_named = msgspec.json.Decoder(named).decode
        self._exact = exact_type(self.returns)
        self._check = checker(self.label, self.returns)

    # --- bodies ---------------------------------------------------------------------------------

    def decode_args(self, body: Buffer, encoding: int) -> tuple[Any, ...]:
        """Decode a body into the values for the function, in order of declaration, with defaults. An empty body means
        no arguments.

        Raises:
            BadArguments: the body is wrong in any way; `details["path"]` is "$.name" and further.
        """
        try:
            # A MessagePack array of at most 15 elements: nearly every call, so this fast path comes first.
            if encoding == MSGPACK and body and body[0] >> 4 == 9 and self._whole:
                return astuple(self._array(body))
            return self._decode(body, encoding)
        except BadArguments:
            raise
        # A hostile body may exhaust the stack or memory, or make the validation of a type raise. Every such failure
        # is an error of the sender and must not harm this process.
        except Exception as exc:
            raise self._complaint(exc) from None

    def encode_result(self, value: Any, encoding: int) -> tuple[Buffer, int]:
        """Encode an answer into (body, encoding used). Bytes are sent RAW; other answers to a RAW request, which comes
        from HTTP, are sent as JSON.

        Raises:
            BadResult: the value cannot be encoded.
        """
        try:
            if isinstance(value, _BINARY):
                return (value if not isinstance(value, memoryview) else _flat(value)), RAW
            if encoding == MSGPACK:
                return _pack(value), MSGPACK
            return _ENCODE[JSON](value), JSON
        except Exception as exc:
            raise cannot_be_sent(self.label, value, exc) from exc

    def encode_checked(self, value: Any, encoding: int) -> tuple[Buffer, int]:
        """`encode_result`, with a check against the annotation.

        Raises:
            BadResult: the value cannot be encoded, or does not match the annotation.
        """
        if type(value) is self._exact and encoding == MSGPACK:
            try:
                return _pack(value), MSGPACK
            except Exception as exc:
                raise cannot_be_sent(self.label, value, exc) from exc
        body, used = self.encode_result(value, encoding)
        self._check(value, body, used)
        return body, used

    def encoder(self, *, check: bool) -> Callable[[Any, int], tuple[Buffer, int]]:
        """`encode_checked` or `encode_result`; of a method that may return an http.Response, one that encodes its body
        and leaves the rest with the call that is being answered.
        """
        encode = self.encode_checked if check else self.encode_result
        if self.events:
            return _encoder_of_events(encode)
        if not self.responds:
            return encode

        def encode_response(value: Any, encoding: int) -> tuple[Buffer, int]:
            if isinstance(value, Response):
                call: Any = CURRENT.get()
                if call is not None:
                    call.reply_meta = to_meta(value.head)
                value = value.body
            return encode(value, encoding)

        return encode_response

    def by_position(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run` itself, or, with keyword-only parameters or a form, a wrapper that takes all values in order."""
        if self.form is not None:
            return binding.bound(run, self.form, [p.name for p in self.parameters], stream=self.stream)
        if self._whole:
            return run
        names = [p.name for p in self.parameters]
        place = [p.keyword_only for p in self.parameters]
        if self.inbound is not None:
            names.insert(self.inbound.at, self.inbound.name)
            place.insert(self.inbound.at, False)

        def in_order(*values: Any) -> Any:
            positional = [value for value, by_name in zip(values, place, strict=True) if not by_name]
            named = {name: value for name, value, by_name in zip(names, values, place, strict=True) if by_name}
            return run(*positional, **named)

        in_order.__wrapped__ = run  # type: ignore[attr-defined]  # so that the log can show where it is defined
        return in_order

    def item_decoder(self) -> Callable[[Buffer, int], Any]:
        """Decodes an item of the client stream: (body, encoding) -> a value of the annotated type.

        Raises, when called:
            BadItem: the item does not have that type.
        """
        assert self.inbound is not None
        decode = typed_decoder(self.label, self.inbound.type)
        name = self.inbound.name

        def item(body: Buffer, encoding: int) -> Any:
            try:
                return decode(body, encoding)
            except BadReply as exc:
                reason = exc.message.rpartition(": ")[2]
                error = self._error(f'an item of "{name}" of {self.label}: {reason}', f"$.{name}")
                raise BadItem(error.message, details=error.details) from None

        return item

    def _decode(self, body: Buffer, encoding: int) -> tuple[Any, ...]:
        if encoding == RAW:
            return self._decode_raw(body)
        if encoding == JSON:
            head = bytes(body[:64]).lstrip()
            if not head:
                head = body = bytes(body).strip()
            if not body:
                return astuple(self._json_named(b"{}"))
            if head[:1] != b"[":
                return astuple(self._json_named(body))
            if self._whole:
                return astuple(self._json_array(body))
            return astuple(self._json_named(self._rename(_JSON_ARRAY.decode(body), {}, JSON)))
        if encoding != MSGPACK:
            raise self._error(f"the arguments of {self.label} are in an unknown encoding, {encoding}")
        if not body:
            return astuple(self._named(b"\x80"))
        first = body[0]
        if first >> 4 == 9 or first in (0xDC, 0xDD):
            if self._whole:
                return astuple(self._array(body))
            return astuple(self._named(self._rename(_ARRAY.decode(body), {}, MSGPACK)))
        try:
            return astuple(self._named(body))
        except msgspec.ValidationError:
            mixed = self._mixed(body)
            if mixed is None:
                raise
        return astuple(self._named(mixed))

    def _decode_raw(self, body: Buffer) -> tuple[Any, ...]:
        if self._blob is None:
            if body:
                raise self._error(
                    f"{self.label} does not take a single bytes argument: send its arguments as JSON or MessagePack"
                )
            return astuple(self._named(b"\x80"))
        make = _BLOBS.get(self._blob.type)
        if make is None:
            # A constrained or optional type: use the decoder, which checks it.
            return astuple(self._named(_pack({self._blob.name: body})))
        holder = self._named(_pack({self._blob.name: b""}))
        setattr(holder, self._blob.name, make(body))
        return astuple(holder)

    def _mixed(self, body: Buffer) -> bytes | None:
        """Convert a map with integer keys into one of names only; None when it has no integer key."""
        raw = _MIXED.decode(body)
        places = sorted(key for key in raw if isinstance(key, int))
        if not places:
            return None
        if places != list(range(len(places))):
            raise self._error(f"the positions given to {self.label} are not 0, 1, 2 and so on")
        named = {key: value for key, value in raw.items() if isinstance(key, str)}
        return self._rename([raw[place] for place in places], named, MSGPACK)

    def _rename(self, values: list[msgspec.Raw], named: Mapping[str, msgspec.Raw], encoding: int) -> bytes:
        if len(values) > len(self._positional):
            raise self._too_many(len(values))
        body: dict[str, msgspec.Raw] = dict(zip(self._positional, values, strict=False))
        for name, value in named.items():
            if name in body:
                raise self._error(
                    f'argument "{_cut(name)}" of {self.label} is given by position and by name', f"$.{name}"
                )
            body[name] = value
        return _ENCODE[encoding](body)

    # --- what is wrong --------------------------------------------------------------------------

    def _error(self, message: str, path: str = "$") -> BadArguments:
        return BadArguments(_cut(message, 2 * _QUOTED), details={"path": _cut(path)})

    def _complaint(self, exc: Exception) -> BadArguments:
        """Translate an error of msgspec about a body into one about the arguments of this method."""
        if not isinstance(exc, msgspec.DecodeError):
            return self._error(f"the arguments of {self.label} cannot be read: {_short(exc)}")
        what, _, where = str(exc).rpartition(" - at ")
        if not what:
            return self._complaint_at_root(where)
        path = where[where.find("`$") + 1 : -1]
        what = _cut(what.replace("`", ""))
        place = re.match(r"\$\[(\d+)\]", path)
        if place and int(place[1]) < len(self._positional):
            path = f"$.{self._positional[int(place[1])]}{path[place.end() :]}"
        inside = re.match(r"\$\.(\w+)(.*)", path, re.DOTALL)
        if inside is None:
            return self._error(f"the arguments of {self.label} cannot be read: {what}", path or "$")
        deeper = f" (at {_cut(path)})" if inside[2] else ""
        return self._error(f'argument "{inside[1]}" of {self.label}: {what}{deeper}', path)

    def _complaint_at_root(self, what: str) -> BadArguments:
        if found := re.fullmatch(r"Object missing required field `(\w+)`", what):
            return self._missing(found[1])
        if found := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
            return self._unknown(found[1])
        if found := re.fullmatch(r"Expected `array` of at least length \d+, got (\d+)", what):
            return self._missing(self._positional[int(found[1])])
        if found := re.match(r"Expected `array` of at most length \d+(?:, got (\d+))?", what):
            return self._too_many(int(found[1]) if found[1] else 0)
        if found := re.fullmatch(r"Expected `(?:array|object)`, got `(\w+)`", what):
            return self._error(f"the arguments of {self.label} must be an array or a map, not {found[1]}")
        return self._error(f"the arguments of {self.label} cannot be read: {what.replace('`', '')}")

    def _missing(self, name: str) -> BadArguments:
        return self._error(f'{self.label} needs the argument "{name}"', f"$.{name}")

    def _unknown(self, name: str) -> BadArguments:
        names = [p.name for p in self.parameters]
        remedy = suggest(name, names, "it takes " + ", ".join(names) if names else "it takes no arguments")
        return self._error(f'{self.label} has no argument "{_cut(name, 64)}": {remedy}', f"$.{name}")

    def _too_many(self, given: int) -> BadArguments:
        most = len(self._positional)
        got = f", {given} were given" if given else ""
        few = "at most " if self._required < most else ""
        noun = "argument" if most == 1 else "arguments"
        return self._error(f"{self.label} takes {few}{most} positional {noun}{got}", f"$[{most}]")

    # --- types ----------------------------------------------------------------------------------

    def _structs(self) -> tuple[type[msgspec.Struct], type[msgspec.Struct]]:
        fields = [(p.name, p.type, _field(p)) for p in self.parameters]
        positional = [f for f, p in zip(fields, self.parameters, strict=True) if not p.keyword_only]
        name = f"{self.label} arguments"
        try:
            # gc=False: such a struct exists only until its values are extracted.
            array = msgspec.defstruct(name, positional, array_like=True, forbid_unknown_fields=True, gc=False)
            named = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True, gc=False)
        except TypeError as exc:
            raise BadDeclaration(f"{self.label}: its parameters cannot be encoded: {exc}") from exc
        return array, named

    def _schema_of_parameters(self, named: type[msgspec.Struct]) -> dict[str, Any]:
        try:
            (ref,), definitions = msgspec.json.schema_components([named], ref_template="#/$defs/{name}")
        except TypeError as exc:
            raise BadDeclaration(f"{self.label}: its parameters cannot be encoded: {exc}") from exc
        schema = dict(definitions.pop(ref["$ref"].rpartition("/")[2]))
        schema.pop("title", None)
        return {**schema, "$defs": definitions} if definitions else schema


def _encoder_of_events(encode: Callable[[Any, int], tuple[Buffer, int]]) -> Callable[[Any, int], tuple[Buffer, int]]:
    def encode_event(value: Any, encoding: int) -> tuple[Buffer, int]:
        if not isinstance(value, ServerSentEvent):
            return encode(value, encoding)
        if encoding != JSON:
            return encode(value.data, encoding)
        body, used = encode(value.data, JSON)
        if used == RAW:
            raise cannot_be_sent("http.ServerSentEvent", value, TypeError("its data cannot be bytes"))
        return sealed(value, body), MSGPACK

    return encode_event


#: The type to decode an answer into, for typed clients.
typed_result = returned


def encode_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], target: str = "the call") -> bytes:
    """The MessagePack body of a call: an array, a map of names, a map with integer keys for both, or nothing.

    Raises:
        BadArguments: a value cannot be encoded; raised where the call is made.
    """
    try:
        if not kwargs:
            return _pack(args) if args else b""
        return _pack({**dict(enumerate(args)), **kwargs} if args else kwargs)
    except Exception as exc:
        _blame(args, kwargs, target, exc)


def _blame(args: tuple[Any, ...], kwargs: dict[str, Any], target: str, exc: Exception) -> NoReturn:
    for key, value in [*enumerate(args), *kwargs.items()]:
        try:
            _pack(value)
        except Exception as own:
            place = f"argument {key + 1}" if isinstance(key, int) else f'argument "{key}"'
            path = f"$[{key}]" if isinstance(key, int) else f"$.{key}"
            raise BadArguments(
                f"{place} of {target} cannot be sent ({_named_type(value)}): {_short(own)}",
                details={"path": path},
            ) from own
    raise BadArguments(f"the arguments of {target} cannot be sent: {_short(exc)}") from exc


def _field(parameter: Parameter) -> Any:
    default = parameter.default
    if parameter.required:
        return msgspec.field()
    try:
        msgspec.to_builtins(default)
        msgspec.defstruct("_", [("default", Any, default)])
    except Exception:
        # Mutable, or not expressible in a schema: pass on the same object, as the function's own default would.
        return msgspec.field(default_factory=lambda: default)
    return msgspec.field(default=default)


def _flat(view: memoryview) -> Buffer:
    return view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()


def _named_type(value: Any) -> str:
    return f"a value of type {type(value).__qualname__}"


def _cut(text: str, most: int = _QUOTED) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _short(exc: Exception) -> str:
    return _cut(f"{type(exc).__name__}: {exc}" if not isinstance(exc, TypeError) else str(exc))

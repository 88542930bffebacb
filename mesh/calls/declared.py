"""The declaration of a function: its parameters and its answer, with types resolved and checked to be encodable.

Owns: reading annotations, and refusing types that cannot be encoded, with the name of class and method.
Leaves to others: decoding and encoding (signature), what a decorator adds (service.decorators).
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from mesh.calls.forms.declared import FormDeclared, FormParameters
from mesh.calls.http_response import unwrapped
from mesh.calls.server_event import unwrapped_event
from mesh.errors import SetupError

#: How HTTP carries a parameter: as the bytes of a body, as the JSON of a body, or as text in a path or query.
Shape = Literal["bytes", "structured", "scalar"]

_ITERATORS: Final = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)
_STRUCTURED: Final = (
    msgspec.inspect.StructType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
    msgspec.inspect.DictType,
    msgspec.inspect.CollectionType,
    msgspec.inspect.TupleType,
)
_BYTES: Final = (msgspec.inspect.BytesType, msgspec.inspect.ByteArrayType, msgspec.inspect.MemoryViewType)


class BadDeclaration(SetupError):
    """A service class cannot work as it is written; the message names class and method."""

    code = "bad_declaration"


class Parameter(msgspec.Struct, frozen=True):
    """One argument of a method, its annotation resolved (`Any` when it has none)."""

    name: str
    type: Any
    shape: Shape = "scalar"
    default: Any = inspect.Parameter.empty
    keyword_only: bool = False

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


class InboundParameter(msgspec.Struct, frozen=True):
    """The parameter `chunks: AsyncIterator[T]`: a client stream.

    Attributes:
        at: its place among all parameters, without `self`.
        type: of each item.
    """

    name: str
    at: int
    type: Any


class Declared(msgspec.Struct, frozen=True):
    """What a function declares.

    Attributes:
        parameters: without `self`, in order.
        returns: type of the answer, or of each item of a stream; `Any` when not annotated.
        stream: it is an async generator function.
        asynchronous: calling it gives an awaitable (False for a plain `def` and for a stream).
        responds: it may return an http.Response, with a body of the type `returns`.
        form: the parameters that are an HTML form, which are not among `parameters`; `inbound` is then its body.
        inbound: the parameter for the items that the caller sends; it is not among `parameters`.
        events: it yields http.ServerSentEvents, with data of the type `returns`.
    """

    parameters: tuple[Parameter, ...]
    returns: Any
    stream: bool
    asynchronous: bool
    responds: bool = False
    form: FormDeclared | None = None
    inbound: InboundParameter | None = None
    events: bool = False


def read(function: Callable[..., Any], label: str, owner: type | None, bound: bool) -> Declared:
    """Resolve what `function` declares; `label` names it in errors, and annotations may use the names of `owner`.

    Raises:
        BadDeclaration: a parameter or the answer cannot be encoded, or an annotation cannot be resolved.
    """
    plain = inspect.unwrap(function)
    if inspect.isgeneratorfunction(plain):
        raise BadDeclaration(f"{label} is a plain generator: write `async def` to make a stream of it")
    # A user's decorator may have wrapped an `async def` in a plain `def` that returns its awaitable.
    stream = inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(plain)
    waits = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(plain)
    hints = _hints(function, label, owner)
    returns, responds = unwrapped(_returned(hints, stream, label))
    if stream and responds:
        raise BadDeclaration(
            f"{label} yields: a stream has the status and headers of its route, so it cannot yield http.Response"
        )
    returns, events = unwrapped_event(returns)
    if events and not stream:
        raise BadDeclaration(f"{label}: only a stream sends http.ServerSentEvents: yield them")
    if typing.get_origin(returns) in _ITERATORS:
        raise BadDeclaration(f"{label}: an http.Response has one body; it cannot contain a stream")
    schema_of(returns, f"{label}: what it {'yields' if stream else 'returns'}")
    parameters, inbound, form = _parameters(function, hints, label, bound)
    if inbound is not None and not waits and not stream:
        what = "a form" if form is not None else "an asynchronous iterator"
        raise BadDeclaration(f'{label}: "{inbound.name}" is {what}, which a plain `def` cannot read: write `async def`')
    return Declared(
        parameters=parameters,
        returns=returns,
        stream=stream,
        asynchronous=waits and not stream,
        responds=responds,
        form=form,
        inbound=inbound,
        events=events,
    )


def returned(function: Callable[..., Any], owner: type | None = None) -> Any:
    """The type of the answer of `function`, or of each item of its stream; `Any` when not annotated."""
    label = getattr(function, "__qualname__", repr(function))
    stream = inspect.isasyncgenfunction(inspect.unwrap(function))
    return unwrapped_event(unwrapped(_returned(_hints(function, label, owner), stream, label))[0])[0]


def schema_of(hint: Any, what: str) -> dict[str, Any]:
    """The JSON Schema of a type. A type without a schema has no decoder either.

    Raises:
        BadDeclaration: the type cannot be encoded; the message names `what` has this type.
    """
    try:
        return msgspec.json.schema(hint)
    except (TypeError, NameError) as exc:
        reason = str(exc).strip().rpartition("\n")[2]
        raise BadDeclaration(
            f"{what} cannot be encoded: {reason}. Use plain types, msgspec Structs, dataclasses or TypedDicts."
        ) from exc


def is_binary(hint: Any) -> bool:
    """Whether a value of this type is always bytes."""
    return isinstance(msgspec.inspect.type_info(hint), _BYTES)


def _hints(function: Callable[..., Any], label: str, owner: type | None) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as first:
        # The names of the class come second: a method called `list` must not hide the type.
        try:
            return typing.get_type_hints(function, localns=dict(vars(owner)) if owner else {}, include_extras=True)
        except Exception:
            raise BadDeclaration(
                f"{label}: an annotation cannot be resolved: {first}. "
                "Import or define it at the top of the module, not in a function or under TYPE_CHECKING."
            ) from first
    except Exception as exc:
        raise BadDeclaration(f"{label}: an annotation cannot be resolved: {exc}") from exc


def _returned(hints: Mapping[str, Any], stream: bool, label: str) -> Any:
    returns = hints.get("return", Any)
    origin = typing.get_origin(returns) or returns
    if not stream:
        if origin in _ITERATORS:
            raise BadDeclaration(f"{label} is annotated as a stream, but its body has no `yield`")
        return Any if returns is object else returns
    if returns is Any:
        return Any
    if origin not in _ITERATORS:
        raise BadDeclaration(f"{label} yields: annotate it AsyncIterator[...], not {returns!r}")
    return (typing.get_args(returns) or (Any,))[0]


def _parameters(
    function: Callable[..., Any], hints: Mapping[str, Any], label: str, bound: bool
) -> tuple[tuple[Parameter, ...], InboundParameter | None, FormDeclared | None]:
    declared = list(inspect.signature(function).parameters.values())
    if not bound:
        if not declared:
            raise BadDeclaration(f"{label} must take self as its first parameter")
        declared = declared[1:]
    found = []
    inbound: InboundParameter | None = None
    forms = FormParameters(BadDeclaration, label)
    for at, parameter in enumerate(declared):
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise BadDeclaration(f"{label} takes *{parameter.name}: take one list parameter instead")
        if parameter.kind is parameter.VAR_KEYWORD:
            raise BadDeclaration(f"{label} takes **{parameter.name}: take one dict parameter instead")
        hint = hints.get(parameter.name, Any)
        hint = Any if hint is object else hint
        if forms.take(parameter, hint):
            continue
        if (typing.get_origin(hint) or hint) in _ITERATORS:
            what = f'{label}: argument "{parameter.name}"'
            if inbound is not None:
                raise BadDeclaration(f'{what} and "{inbound.name}" are both asynchronous iterators; a call sends one')
            if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty:
                raise BadDeclaration(f"{what} is a stream of items: it cannot be keyword-only or have a default")
            item = (typing.get_args(hint) or (Any,))[0]
            schema_of(item, f"{what}: an item")
            inbound = InboundParameter(parameter.name, at, item)
            continue
        found.append(
            Parameter(
                name=parameter.name,
                type=hint,
                shape=_shape(hint, f'{label}: argument "{parameter.name}"'),
                default=parameter.default,
                keyword_only=parameter.kind is parameter.KEYWORD_ONLY,
            )
        )
    form = forms.declared(declared)
    if form is not None:
        name = form.stream or next(iter(form.fields.values())).parameter
        if inbound is not None:
            raise BadDeclaration(f'{label}: "{inbound.name}" is the body, and "{name}" a form in it; keep one of both')
        # The body follows the other arguments, see forms.binding.
        inbound = InboundParameter(name, len(found), bytes)
    return tuple(found), inbound, form


def _shape(hint: Any, what: str) -> Shape:
    schema_of(hint, what)
    info = msgspec.inspect.type_info(hint)
    kinds = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    kinds = tuple(kind for kind in kinds if not isinstance(kind, msgspec.inspect.NoneType))
    if any(isinstance(kind, _STRUCTURED) for kind in kinds):
        return "structured"
    return "bytes" if kinds and all(isinstance(kind, _BYTES) for kind in kinds) else "scalar"

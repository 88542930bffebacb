"""The parameters of a method that are a form: `form: http.Multipart`, `photo: http.File`, `Annotated[str, http.Form]`.

Owns: recognizing them, and refusing those that cannot work; the JSON Schema of the form.
Leaves to others: the other parameters (calls.declared), reading their values (fields).
"""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any, Final

import msgspec

from mesh.calls.forms.content_type import MULTIPART, URLENCODED, library
from mesh.calls.forms.files import File
from mesh.calls.forms.multipart import Multipart

_FILE_SCHEMA: Final = {"type": "string", "format": "binary"}
_UNIONS: Final = (typing.Union, types.UnionType)


class Form:
    """A marker: the parameter is a field of an HTML form: `Annotated[str, http.Form]`.

    Args:
        name: of the field; "" takes the name of the parameter. `http.Form` without parentheses does the same.

    A parameter of the type `http.File` needs the marker only for another name: `Annotated[http.File,
    http.Form("photo-1")]`. See docs/http.md, "Forms".
    """

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"http.Form({self.name!r})"


class FormField(msgspec.Struct, frozen=True):
    """One field of a form, as a parameter.

    Attributes:
        parameter: its name in the method.
        name: its name in the form.
        type: of the parameter.
        file: it is a file, or a list of them; otherwise text.
        many: of files: it is a list.
        default: without one, it is required.
    """

    parameter: str
    name: str
    type: Any
    file: bool = False
    many: bool = False
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        """Whether a form without it is refused."""
        return self.default is inspect.Parameter.empty


class FormDeclared(msgspec.Struct, frozen=True):
    """What a method takes of a form.

    Attributes:
        stream: the parameter of the type `http.Multipart`; "" when the fields are parameters.
        fields: otherwise, by their names in the form.
        order: all parameters of the method: name, and whether it is keyword-only.
    """

    stream: str
    fields: dict[str, FormField]
    order: tuple[tuple[str, bool], ...]

    @property
    def parameters(self) -> set[str]:
        """The names of the parameters that are the form or a field of it."""
        return {self.stream} if self.stream else {field.parameter for field in self.fields.values()}


class FormParameters:
    """Collects the parameters of one method that are a form.

    Args:
        complain: makes the error for a declaration, with the name of the method in it.
    """

    def __init__(self, complain: type[Exception], label: str) -> None:
        self._complain = complain
        self._label = label
        self._stream = ""
        self._fields: dict[str, FormField] = {}

    def take(self, parameter: inspect.Parameter, hint: Any) -> bool:
        """Take a parameter, if it is a form or a field of one.

        Raises:
            BadDeclaration: it cannot work.
        """
        marker = _marker(hint)
        plain = _plain(hint)
        what = f'{self._label}: argument "{parameter.name}"'
        if plain is Multipart:
            if marker is not None or parameter.default is not parameter.empty:
                raise self._complain(f"{what} is the whole form: it cannot have a marker or a default")
            if self._stream:
                raise self._complain(f'{what} and "{self._stream}" are both the whole form; keep one')
            self._stream = parameter.name
            return True
        file, many = _files(plain)
        if marker is None and not file:
            return False
        if len(_markers(hint)) > (marker is not None):
            raise self._complain(f"{what} is in a form, so that it cannot have another marker of http")
        name = (marker.name if marker is not None else "") or parameter.name
        if not isinstance(name, str) or not name.isprintable() or len(name) > 100:
            raise self._complain(f"{what}: {name!r:.80} is not a name of a field: at most 100 printable characters")
        if name in self._fields:
            raise self._complain(f'{what} and "{self._fields[name].parameter}" both read the field {name!r}')
        if not file:
            try:
                msgspec.json.schema(plain)
            except TypeError as exc:
                raise self._complain(f"{what} cannot be read from text: {str(exc).strip()}") from exc
        self._fields[name] = FormField(parameter.name, name, plain if file else hint, file, many, parameter.default)
        return True

    def declared(self, parameters: list[inspect.Parameter]) -> FormDeclared | None:
        """What was taken; None when the method takes no form.

        Args:
            parameters: of the method, without `self`.

        Raises:
            BadDeclaration: a whole form and fields of it.
            SetupError: the package python-multipart is not installed.
        """
        if not self._stream and not self._fields:
            return None
        if self._stream and self._fields:
            field = next(iter(self._fields.values())).parameter
            raise self._complain(
                f'{self._label}: "{self._stream}" is the whole form, and "{field}" a field of it; keep one of both'
            )
        library()
        order = tuple((each.name, each.kind is each.KEYWORD_ONLY) for each in parameters)
        return FormDeclared(self._stream, self._fields, order)


def schema_of_form(form: FormDeclared) -> dict[str, Any]:
    """JSON Schema of the form: an object with a property for each field. `contentMediaType` is the type of body.

    A form without files may also be urlencoded, which `contentMediaType` says then: see gateway.uploads.
    """
    if form.stream:
        return {"type": "object", "contentMediaType": MULTIPART}
    texts = [field for field in form.fields.values() if not field.file]
    schemas, definitions = msgspec.json.schema_components(
        [field.type for field in texts], ref_template="#/$defs/{name}"
    )
    by_name = {field.name: schema for field, schema in zip(texts, schemas, strict=True)}
    properties = {name: by_name.get(name) or _schema_of_file(field) for name, field in form.fields.items()}
    for field in texts:
        if not field.required and isinstance(field.default, str | int | float | bool | None):
            properties[field.name] = {**properties[field.name], "default": field.default}
    found: dict[str, Any] = {
        "type": "object",
        "contentMediaType": URLENCODED if len(texts) == len(form.fields) else MULTIPART,
        "properties": properties,
        "required": [field.name for field in form.fields.values() if field.required],
        "additionalProperties": False,
    }
    return {**found, "$defs": definitions} if definitions else found


def _schema_of_file(field: FormField) -> dict[str, Any]:
    return {"type": "array", "items": dict(_FILE_SCHEMA)} if field.many else dict(_FILE_SCHEMA)


def _markers(hint: Any) -> list[Any]:
    """The markers of http in an annotation: those of forms, and those of other places in a request."""
    metadata = getattr(hint, "__metadata__", ())
    return [
        each
        for each in metadata
        if each is Form or getattr(each, "__module__", type(each).__module__).startswith("mesh.")
    ]


def _marker(hint: Any) -> Form | None:
    for each in getattr(hint, "__metadata__", ()):
        if each is Form:
            return Form()
        if isinstance(each, Form):
            return each
    return None


def _plain(hint: Any) -> Any:
    """The annotation without `Annotated`."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _files(hint: Any) -> tuple[bool, bool]:
    """Whether a type is a file or a list of files, each with or without None; and whether it is the list."""
    if typing.get_origin(hint) in _UNIONS:
        kinds = [each for each in typing.get_args(hint) if each is not type(None)]
        return _files(kinds[0]) if len(kinds) == 1 else (False, False)
    if typing.get_origin(hint) is list:
        return typing.get_args(hint) == (File,), True
    return hint is File, False

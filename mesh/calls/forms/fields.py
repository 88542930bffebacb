"""Reads a form into the parameters of a method.

Owns: which fields there must be, converting text, and collecting files.
Leaves to others: declarations (declared), parts (multipart), the handler's call (binding).
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from mesh.calls.forms.content_type import MULTIPART, URLENCODED, kind_of
from mesh.calls.forms.declared import FormDeclared, FormField, schema_of_form
from mesh.calls.forms.errors import MOST_PARTS, TEXT_BYTES, BadForm, bad_field, too_large
from mesh.calls.forms.files import File, Spool
from mesh.calls.forms.multipart import Multipart, Part
from mesh.calls.text_values import Convert, converter, is_many
from mesh.suggest import suggest

_encode: Final = msgspec.json.Encoder().encode

#: The field for the token of a login session, which the gateway reads (docs/sessions.md); a method need not declare it.
CSRF_FIELD: Final = "csrf_token"


class _Text:
    """How the text of one field becomes a value: as a value in a query string does."""

    def __init__(self, field: FormField, schema: dict[str, Any], root: dict[str, Any]) -> None:
        items = is_many(schema, root)
        self.many = items is not None
        self._how: Convert | None = converter(schema if items is None else items, root)
        self._decode = msgspec.json.Decoder(field.type).decode
        self._name = field.name

    def convert(self, text: str) -> Any:
        """One value.

        Raises:
            BadItem: the text does not have the type.
        """
        try:
            return text if self._how is None else self._how(text)
        except ValueError as exc:
            raise bad_field(self._name, str(exc)) from exc

    def decode(self, values: list[Any]) -> Any:
        """The parameter, of all values.

        Raises:
            BadItem: it does not have the type; several values, and it is not a list.
        """
        if not self.many and len(values) > 1:
            raise bad_field(self._name, "is given more than once")
        try:
            return self._decode(_encode(values if self.many else values[0]))
        except (msgspec.ValidationError, RecursionError, OverflowError) as exc:
            reason, _, _ = str(exc).partition(" - at ")
            raise bad_field(self._name, reason.replace("`", "")) from exc


class Fields:
    """Reads the forms of one method."""

    def __init__(self, form: FormDeclared) -> None:
        self._fields = form.fields
        schema = schema_of_form(form)
        self._texts = {
            field.name: _Text(field, schema["properties"][field.name], schema)
            for field in form.fields.values()
            if not field.file
        }

    async def read(self, chunks: AsyncIterable[bytes], content_type: str, spool: Spool) -> dict[str, Any]:
        """The values of all parameters that are fields, with defaults.

        Args:
            chunks: the body.
            spool: takes the files; the caller closes it.

        Raises:
            BadItem: a field is missing, unknown, doubled or not of its type; `details["path"]` is `form.title`.
            BadForm: the body is not a form that can be read, or is too large.
        """
        texts: dict[str, list[Any]] = {}
        files: dict[str, list[File]] = {}
        kind = kind_of(content_type)
        if kind == URLENCODED:
            for name, text in await _pairs(chunks):
                if name == CSRF_FIELD and name not in self._fields:
                    continue
                self._add(texts, self._field(name), text)
        elif kind == MULTIPART:
            left = TEXT_BYTES
            async for part in Multipart(chunks, content_type):
                if part.name == CSRF_FIELD and part.name not in self._fields:
                    continue
                field = self._field(part.name)
                if field.file:
                    await self._take(files, field, part, spool)
                    continue
                if part.filename is not None:
                    raise bad_field(field.name, "is a text field, and the form has a file there")
                self._add(texts, field, await part.text(left))
                left -= part.size
        else:
            raise BadForm(f'the body is not a form, but "{kind[:80]}"')
        return {field.parameter: self._value(field, texts, files) for field in self._fields.values()}

    def _field(self, name: str) -> FormField:
        field = self._fields.get(name)
        if field is None:
            known = list(self._fields)
            raise bad_field(name, f"is unknown; {suggest(name, known, 'known are ' + ', '.join(known))}")
        return field

    def _add(self, texts: dict[str, list[Any]], field: FormField, text: str) -> None:
        if field.file:
            raise bad_field(field.name, f"is a file, and the form has text there; send it as {MULTIPART}")
        how = self._texts[field.name]
        values = texts.setdefault(field.name, [])
        if values and not how.many:
            raise bad_field(field.name, "is given more than once")
        values.append(how.convert(text))

    async def _take(self, files: dict[str, list[File]], field: FormField, part: Part, spool: Spool) -> None:
        if part.filename is None:
            # Swagger UI and scripts send an empty text for a file input without a chosen file.
            async for _ in part:
                raise bad_field(field.name, "is a file, and the form has text there")
            return
        if files.get(field.name) and not field.many:
            raise bad_field(field.name, "is given more than once")
        file = File(filename=part.filename, content_type=part.content_type)
        await file._fill(part, spool)
        # A file input without a chosen file is sent as an empty file without a name.
        if file.size or file.filename:
            files.setdefault(field.name, []).append(file)

    def _value(self, field: FormField, texts: dict[str, list[Any]], files: dict[str, list[File]]) -> Any:
        if field.file and (found := files.get(field.name)):
            return found if field.many else found[0]
        if field.name in texts:
            return self._texts[field.name].decode(texts[field.name])
        if field.required:
            raise bad_field(field.name, "is missing")
        return field.default


async def _pairs(chunks: AsyncIterable[bytes]) -> list[tuple[str, str]]:
    """The names and values of an urlencoded form.

    Raises:
        BadForm: it is too large, has too many fields, or is not UTF-8.
    """
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > TEXT_BYTES:
            raise too_large("the form", TEXT_BYTES)
    if body.count(b"&") >= MOST_PARTS:
        raise too_large("the form", MOST_PARTS, "fields")
    try:
        return parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict")
    except ValueError as exc:
        raise BadForm("the form is not UTF-8") from exc

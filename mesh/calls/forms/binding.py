"""Calls a handler with the form that its caller sends.

Owns: the function that the worker runs in place of the handler; removing files when the handler has returned.
Leaves to others: reading the form (fields, multipart).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import wraps
from typing import Any

from mesh.calls.context import CURRENT
from mesh.calls.forms.declared import FormDeclared
from mesh.calls.forms.errors import BadForm
from mesh.calls.forms.fields import Fields
from mesh.calls.forms.files import Spool
from mesh.calls.forms.multipart import Multipart
from mesh.protocol.messages import FORM


def bound(run: Callable[..., Any], form: FormDeclared, names: list[str], *, stream: bool) -> Callable[..., Any]:
    """A function that takes the values of `names` and then the body of the form, and runs the handler.

    Args:
        run: the handler.
        names: its parameters that are not part of the form, in order.
        stream: it is an async generator function.
    """
    fields = None if form.stream else Fields(form)

    async def arguments(values: tuple[Any, ...], spool: Spool) -> tuple[list[Any], dict[str, Any]]:
        *given, chunks = values
        found = dict(zip(names, given, strict=True))
        content_type = _content_type()
        if fields is None:
            found[form.stream] = Multipart(chunks, content_type)
        else:
            found |= await fields.read(chunks, content_type, spool)
        positional = [found[name] for name, by_name in form.order if not by_name]
        return positional, {name: found[name] for name, by_name in form.order if by_name}

    @wraps(run)
    async def call(*values: Any) -> Any:
        spool = Spool()
        try:
            positional, named = await arguments(values, spool)
            return await run(*positional, **named)
        finally:
            spool.close()

    @wraps(run)
    async def items(*values: Any) -> AsyncIterator[Any]:
        spool = Spool()
        try:
            positional, named = await arguments(values, spool)
            found = run(*positional, **named)
            try:
                async for item in found:
                    yield item
            finally:
                await found.aclose()
        finally:
            spool.close()

    return items if stream else call


def _content_type() -> str:
    context = CURRENT.get()
    content_type = context.meta.pop(FORM, "") if context is not None else ""
    if not content_type:
        raise BadForm(f'the call is no HTML form: its metadata has no "{FORM}", the Content-Type of the body')
    return content_type

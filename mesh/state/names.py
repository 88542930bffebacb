"""The syntax of names of namespaces and keys.

Owns: rejecting invalid names before they are sent to an engine. Leaves to others: the values.
"""

from __future__ import annotations

import re
from typing import Any, Final

from mesh.errors import BadRequest
from mesh.state.contract import MAX_KEY, MAX_NAMESPACE

# Safe on any command line and in any path: namespaces are few and chosen by programmers.
_NAMESPACE: Final = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.:/-]{{0,{MAX_NAMESPACE - 1}}}")


def check_namespace(name: Any) -> str:
    """The name itself.

    Raises:
        BadRequest: it is not one.
    """
    if not isinstance(name, str) or not _NAMESPACE.fullmatch(name):
        raise BadRequest(
            f"state {_quoted(name)}: this is not a valid namespace; use letters, digits and _ . : / - "
            f'(1 to {MAX_NAMESPACE} characters, the first a letter, digit or _), like state("carts")'
        )
    return name


def check_key(namespace: str, key: Any) -> str:
    """The key itself.

    Raises:
        BadRequest: it is not one.
    """
    if not isinstance(key, str):
        raise BadRequest(f'state "{namespace}": key {_quoted(key)} is not text; convert it with str(…)')
    if not key:
        raise BadRequest(f'state "{namespace}": the key is empty')
    return _check_text(namespace, "key", key)


def check_prefix(namespace: str, prefix: Any) -> str:
    """The prefix itself; "" is a prefix of every key.

    Raises:
        BadRequest: it is not one.
    """
    if not isinstance(prefix, str):
        raise BadRequest(f'state "{namespace}": prefix {_quoted(prefix)} is not text')
    return _check_text(namespace, "prefix", prefix)


def _check_text(namespace: str, what: str, text: str) -> str:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise BadRequest(f'state "{namespace}": {what} {_quoted(text)} cannot be encoded in UTF-8') from None
    if length > MAX_KEY:
        raise BadRequest(
            f'state "{namespace}": {what} {_quoted(text)} is {length} bytes long; at most {MAX_KEY} are allowed'
        )
    if "\0" in text:
        raise BadRequest(f'state "{namespace}": {what} {_quoted(text)} contains a zero byte')
    return text


def _quoted(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"

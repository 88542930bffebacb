"""The contract of state: keys and values in namespaces.

Owns: the data types and the Protocol that every engine implements.
Leaves to others: conversion to Python values (namespace), storing (engines).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

#: Maximum length of a key and of a namespace, in bytes of UTF-8.
MAX_KEY: Final = 1024
MAX_NAMESPACE: Final = 255

#: set: replace the value · delete · add: add `by` to an integer; an absent key counts as 0.
Verb = Literal["set", "delete", "add"]


class Write(msgspec.Struct, array_like=True, frozen=True):
    """One change.

    Attributes:
        value: MessagePack, for `set`.
        by: for `add`; the sum must fit into 64 bits.
        etag: None: write unconditionally; "": only when the key is absent; else only when the key has this etag.
        ttl_s: time to live; 0 for no expiry. An `add` to an existing key keeps its time to live.
        new_etag: the etag that the key will have, made by the caller (mesh.ids.etag). It makes a repeated write
            idempotent: a key that already has this etag is left as it is.
    """

    namespace: str
    key: str
    verb: Verb
    new_etag: str
    value: bytes = b""
    by: int = 0
    etag: str | None = None
    ttl_s: float = 0.0


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One key with its present value.

    Attributes:
        expires_at: wall clock; 0 for no expiry.
    """

    key: str
    value: bytes
    etag: str
    expires_at: float = 0.0


class StateStore(Protocol):
    """The state of an engine. tests/contract/test_state.py checks these promises of every engine:

    - When `write` returns, its changes are durable. They are atomic: all are made, or none.
    - A key is absent from the instant at which it expires, even if its row has not been deleted yet.
    - A read sees every write that was confirmed before the read was requested.
    """

    async def get(self, namespace: str, keys: Sequence[str], *, timeout_s: float) -> list[Entry | None]:
        """The entries, in the order of the keys; None for an absent key.

        Raises:
            TooLarge: the entries together exceed the limit of one answer; request fewer keys.
        """

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Entry | None]:
        """Apply the writes in one transaction, in order; each write sees the earlier ones.

        Returns:
            For each write the entry as it is afterwards (with its value only for `add`); None for a deleted key.

        Raises:
            Conflict: the etag of the key in `details["key"]` did not match; nothing was written.
            BadRequest: `add` to a value that is not an integer, or a sum beyond 64 bits; an empty or too long key or
                namespace.
        """

    async def page(
        self, namespace: str, *, prefix: str = "", after: str = "", limit: int = 100, timeout_s: float
    ) -> list[Entry]:
        """One page of entries, ordered by the UTF-8 bytes of their keys; `after` is the last key of the previous page.

        A page may be shorter than `limit` although more entries follow; only an empty page marks the end.

        Raises:
            TooLarge: the entries together exceed the limit of one answer; request fewer.
        """

    async def namespaces(self, *, timeout_s: float) -> list[tuple[str, int]]:
        """(namespace, number of keys), sorted by name."""

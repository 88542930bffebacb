"""What an engine does with state: keys and values in namespaces.

Owns: the shapes and the Protocol that every engine fulfils.
Leaves to others: values as Python knows them (namespace), storing (engines).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

#: Bytes of a key and of a namespace, in UTF-8.
MAX_KEY: Final = 1024
MAX_NAMESPACE: Final = 255

#: set: the value, whatever is there · delete · add: `by` to a whole number, absent counts as 0.
Verb = Literal["set", "delete", "add"]


class Write(msgspec.Struct, array_like=True, frozen=True):
    """One change.

    Attributes:
        value: MessagePack, for `set`.
        by: for `add`; the sum must fit into 64 bits.
        etag: None: whatever is there; "": only when the key is absent; else only when the key has this etag.
        ttl_s: forgotten after so long; 0 for never. An `add` keeps the time to live of what is there.
        new_etag: the etag that the key will have; made by whoever writes (mesh.ids.etag), so that repeating an
            unanswered write is seen to have been done: what has this etag already is left as it is.
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
    """One key as it stands.

    Attributes:
        expires_at: wall clock; 0 for never.
    """

    key: str
    value: bytes
    etag: str
    expires_at: float = 0.0


class StateStore(Protocol):
    """The state of an engine; tests/contract/test_state.py holds it to this.

    - What `write` returned from is durable; all of it happened at once, or none.
    - An expired key is absent from the instant on, whether or not it was swept away.
    - Reads see every write that was confirmed before they were asked for.
    """

    async def get(self, namespace: str, keys: Sequence[str], *, timeout_s: float) -> list[Entry | None]:
        """In the order of the keys. Raises TooLarge: together they are more than one answer may be; ask for fewer."""

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Entry | None]:
        """One transaction, whose writes see each other in order; each key as it is afterwards (its value only for
        `add`), None for what was deleted.

        Raises:
            Conflict: an etag did not fit; `details["key"]` says which, nothing was written.
            BadRequest: `add` to what is no whole number, or beyond 64 bits; an empty or too long key or namespace.
        """

    async def page(
        self, namespace: str, *, prefix: str = "", after: str = "", limit: int = 100, timeout_s: float
    ) -> list[Entry]:
        """Entries in the order of their keys' UTF-8 bytes; `after` is the last key of the page before.

        There may be fewer than `limit` although there are more: only an empty page is behind the last one.

        Raises:
            TooLarge: together they are more than one answer may be; ask for fewer.
        """

    async def namespaces(self, *, timeout_s: float) -> list[tuple[str, int]]:
        """(namespace, how many keys), by name."""

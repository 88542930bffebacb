"""The user's API: the keys and values of one namespace, `self.state("carts")`.

Owns: the methods, Python values, sizes and times to live, paging, and the behaviour inside an `atomic` block.
Leaves to others: storing (an engine, by mesh.state.contract), committing a block (the code that opened it).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final, Generic, Protocol, TypeVar, overload

from mesh import ids
from mesh.calls.context import patience
from mesh.clock import Clock
from mesh.config.values import read_seconds, show_size
from mesh.errors import BadRequest, TooLarge
from mesh.state.contract import Entry, StateStore, Write
from mesh.state.names import check_key, check_namespace, check_prefix
from mesh.state.reading import AT_ONCE, read_entries
from mesh.state.values import ABSENT, Value, check_type, decode, encode
from mesh.state.watching import Watching

T = TypeVar("T")
U = TypeVar("U")

#: Seconds, or text with a unit: 90, "90s", "30m".
Duration = float | int | str

#: Entries requested at a time by a listing; a listing of large values requests fewer when an answer is too large.
PAGE: Final = 100
#: Changes in one transaction: a transaction is one commit, and other work waits for it.
MOST_WRITES: Final = 10_000
#: Bytes that travel with each change besides namespace, key and value; bytes reserved for the enclosing message.
PER_WRITE: Final = 64
AROUND: Final = 4096

_INT64: Final = range(-(2**63), 2**63)


class Block(Protocol):
    """The part of an `atomic` block that state uses.

    Attributes:
        writes: the writes collected so far, oldest first.
        outer: effects that precede these in the same commit: an enclosing block, or blocks that ended earlier in the
            same task.
    """

    @property
    def writes(self) -> Sequence[Write]: ...

    @property
    def outer(self) -> Block | None: ...

    def write(self, writes: Sequence[Write]) -> None:
        """Add writes that are committed with the block."""


def outside() -> Block | None:
    """The current block, where there are no blocks."""
    return None


class Namespace(Generic[T]):
    """The keys of one namespace.

    ::

        carts = self.state("carts", type=Cart)
        cart, etag = await carts.get("u1")                 # (None, "") when there is none
        etag = await carts.set("u1", cart, etag=etag)      # Conflict when the key was written in between
        await carts.set("u2", Cart(), etag="")             # only when there is none

    A write is durable when it returns. **Inside `async with self.atomic():`** nothing is written until the block is
    committed: `set` returns the etag that the key will have; `get` and `get_many` see the block's own writes, else the
    stored values; listings see stored values only. A Conflict is raised when the block is committed.

    Every method waits for an unreachable engine: for the configured time at most, and not beyond the deadline of the
    current call. Then it raises TryLater (nothing was done) or Uncertain (the change may have been made). When the
    store is read-only or the disk is full, a write raises Unwritable.

    Attributes:
        name: the name of the namespace.
    """

    __slots__ = ("_clock", "_collecting", "_hint", "_max_bytes", "_store", "_timeout_s", "_watching", "name")

    def __init__(
        self,
        name: str,
        store: StateStore,
        *,
        clock: Clock,
        timeout_s: float,
        max_bytes: int,
        type: type[T] | Any = Any,
        collecting: Callable[[], Block | None] = outside,
        watching: Callable[[], Watching] | None = None,
    ) -> None:
        """Args:
        timeout_s: how long to wait for an unreachable engine.
        max_bytes: limit of one request: larger values and transactions are rejected.
        type: of the values, for reading; Any for plain ones.
        collecting: returns the current `atomic` block, or None.
        watching: gives the watched keys of the process; None where each watch may poll by itself.

        Raises:
            BadRequest: the name is not a valid namespace.
            BadArguments: msgspec cannot decode the type.
        """
        self.name = check_namespace(name)
        self._store = store
        self._clock = clock
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._hint = type if type is Any else check_type(type)
        self._collecting = collecting
        self._watching = watching or (lambda: Watching(lambda: store, clock, timeout_s))

    def __repr__(self) -> str:
        return f"<state {self.name}>"

    # --- reading ------------------------------------------------------------------------------------------

    @overload
    async def get(self, key: str) -> Value[T]: ...
    @overload
    async def get(self, key: str, *, type: type[U]) -> Value[U]: ...
    @overload
    async def get(self, key: str, *, type: Any) -> Value[Any]: ...
    async def get(self, key: str, *, type: Any = None) -> Value[Any]:
        """The value and its etag; (None, "") when the key is absent.

        Raises:
            BadReply: the stored value is not of that type.
        """
        return (await self.get_many((key,), type=type))[key]

    @overload
    async def get_many(self, keys: Iterable[str]) -> dict[str, Value[T]]: ...
    @overload
    async def get_many(self, keys: Iterable[str], *, type: type[U]) -> dict[str, Value[U]]: ...
    @overload
    async def get_many(self, keys: Iterable[str], *, type: Any) -> dict[str, Value[Any]]: ...
    async def get_many(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Value[Any]]:
        """All of the keys with their values and etags, in the given order. One request reads a thousand keys, or as
        many as fit into one answer.

        Raises:
            BadReply: a stored value is not of that type.
        """
        if isinstance(keys, str):
            raise BadRequest(f'{self!r}: get_many takes several keys, like ["{keys}"]')
        hint = self._hint if type is None else check_type(type)
        values: dict[str, Value[Any]] = {check_key(self.name, key): ABSENT for key in keys}
        block = self._collecting()
        wanted: list[str] = []
        for key in values:
            mine = None if block is None else self._written(block, key)
            if mine is None:
                wanted.append(key)
            elif mine.verb == "set":
                values[key] = Value(decode(self.name, key, mine.value, hint), mine.new_etag)
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            for entry in await read_entries(self._store, self.name, some, self._patience):
                if entry is not None:
                    values[entry.key] = Value(decode(self.name, entry.key, entry.value, hint), entry.etag)
        return values

    def _written(self, block: Block, key: str) -> Write | None:
        """The last write to a key in the block or in the effects that precede it."""
        before: Block | None = block
        while before is not None:
            for write in reversed(before.writes):
                if write.key == key and write.namespace == self.name:
                    if write.verb == "add":
                        raise BadRequest(
                            f"{self._at(key)}: this atomic block adds to it, so its value is known only when the block "
                            "is committed; read it before the add, or use set instead"
                        )
                    return write
            before = before.outer
        return None

    @overload
    def items(self, prefix: str = "") -> AsyncIterator[tuple[str, T]]: ...
    @overload
    def items(self, prefix: str = "", *, type: type[U]) -> AsyncIterator[tuple[str, U]]: ...
    @overload
    def items(self, prefix: str = "", *, type: Any) -> AsyncIterator[tuple[str, Any]]: ...
    def items(self, prefix: str = "", *, type: Any = None) -> AsyncIterator[tuple[str, Any]]:
        """Keys that begin with `prefix`, with their values, in the order of their UTF-8 bytes.

        Pages are read during the iteration: each key comes at most once, as it was when its page was read. Keys that
        are written or deleted meanwhile may or may not be seen; keys that exist throughout are seen.

        Raises:
            BadReply: a stored value is not of that type.
        """
        hint = self._hint if type is None else check_type(type)
        return self._items(check_prefix(self.name, prefix), hint)

    def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Keys that begin with `prefix`; in order, and read in pages, as by `items`."""
        return self._keys(check_prefix(self.name, prefix))

    @overload
    def watch(self, key: str, *, etag: str = "") -> AsyncIterator[Value[T]]: ...
    @overload
    def watch(self, key: str, *, etag: str = "", type: type[U]) -> AsyncIterator[Value[U]]: ...
    @overload
    def watch(self, key: str, *, etag: str = "", type: Any) -> AsyncIterator[Value[Any]]: ...
    def watch(self, key: str, *, etag: str = "", type: Any = None) -> AsyncIterator[Value[Any]]:
        """The value of a key whenever it has changed, without end; (None, "") when it was deleted or has expired.

        ::

            async for order, etag in self.state("orders", type=Order).watch(id, etag=last):
                yield http.ServerSentEvent(order, id=etag)

        It begins with the present value, unless that has the etag. Changes are found within 0.1 s; of several in that
        time only the last is seen. While the engine restarts, it waits. An `atomic` block makes no difference.

        Args:
            etag: of the value that the caller knows; "" is an absent key.

        Raises, when iterated:
            BadReply: the stored value is not of that type.
            Forbidden: `[access]` does not allow to read the namespace.
        """
        hint = self._hint if type is None else check_type(type)
        return self._watch(check_key(self.name, key), self._etag(key, etag) or "", hint)

    async def _watch(self, key: str, etag: str, hint: Any) -> AsyncIterator[Value[Any]]:
        async with aclosing(self._watching().follow(self.name, key, etag)) as entries:
            async for entry in entries:
                yield ABSENT if entry is None else Value(decode(self.name, key, entry.value, hint), entry.etag)

    async def _items(self, prefix: str, hint: Any) -> AsyncIterator[tuple[str, Any]]:
        async for page in self._pages(prefix):
            for entry in page:
                yield entry.key, decode(self.name, entry.key, entry.value, hint)

    async def _keys(self, prefix: str) -> AsyncIterator[str]:
        async for page in self._pages(prefix):
            for entry in page:
                yield entry.key

    async def _pages(self, prefix: str) -> AsyncIterator[list[Entry]]:
        after, limit = "", PAGE
        while True:
            try:
                page = await self._store.page(
                    self.name, prefix=prefix, after=after, limit=limit, timeout_s=self._patience()
                )
            except TooLarge:
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            # A short page does not mark the end: an engine may limit a page in bytes.
            if not page:
                return
            yield page
            after = page[-1].key

    # --- writing ------------------------------------------------------------------------------------------

    async def set(self, key: str, value: Any, *, etag: str | None = None, ttl: Duration | None = None) -> str:
        """Write a value; return its new etag.

        Args:
            etag: None: write unconditionally. "": only when the key is absent. Else: only when it has this etag.
            ttl: time to live, like "30m" or 90; None for no expiry, even when the key had one.

        Raises:
            Conflict: the etag did not match; nothing was written.
            BadArguments, TooLarge: the value cannot be stored.
        """
        return (await self.transaction((self.put(key, value, etag=etag, ttl=ttl),)))[0]

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        """Delete a key. An absent key is not an error, unless an etag is given.

        Raises:
            Conflict: the etag did not match; nothing was deleted.
        """
        await self.transaction((self.remove(key, etag=etag),))

    async def clear(self, prefix: str = "") -> int:
        """Delete the keys that begin with `prefix`; return how many. Each page is a transaction: keys that are written
        meanwhile may stay, and a `clear` that fails half way has deleted some keys.

        Raises:
            BadRequest: it is called inside an `atomic` block, which is one transaction.
        """
        if self._collecting() is not None:
            raise BadRequest(f"{self!r}: clear cannot be used in an atomic block; delete the known keys one by one")
        count = 0
        async for page in self._pages(check_prefix(self.name, prefix)):
            await self._store.write([self.remove(entry.key) for entry in page], timeout_s=self._patience())
            count += len(page)
        return count

    # `int | Any`, not `int | None`: outside of `atomic` it is always a number, so callers need not test for None.
    async def add(self, key: str, by: int = 1, *, ttl: Duration | None = None) -> int | Any:
        """Add to an integer, where an absent key counts as 0; return the sum, or None inside `atomic`.

        Args:
            ttl: time to live of a new key; an existing key keeps its own.

        Raises:
            BadRequest: the stored value is not an integer, or the sum does not fit into 64 bits.
        """
        write = self.plus(key, by, ttl=ttl)
        block = self._collecting()
        if block is not None:
            block.write((write,))
            return None
        (entry,) = await self._store.write((write,), timeout_s=self._patience())
        assert entry is not None, "what was added to is there"
        return decode(self.name, key, entry.value, int)

    async def transaction(self, writes: Iterable[Write]) -> list[str]:
        """Make all changes, or none: `await carts.transaction([carts.put("u1", cart), stock.plus("apples", -1)])`.

        Args:
            writes: made by `put`, `remove` and `plus`, of this namespace or of others; in order.

        Returns:
            For each change the etag of its key afterwards; "" for a removed key.

        Raises:
            Conflict: the etag of the key in `details["namespace"]` and `details["key"]` did not match.
            TooLarge, BadRequest: the changes are too many or too large together, or as for `set` and `add`.
        """
        writes = tuple(writes)
        if not writes:
            return []
        self._check_size(writes)
        block = self._collecting()
        if block is not None:
            block.write(writes)
            return ["" if write.verb == "delete" else write.new_etag for write in writes]
        entries = await self._store.write(writes, timeout_s=self._patience())
        return ["" if entry is None else entry.etag for entry in entries]

    def _check_size(self, writes: Sequence[Write]) -> None:
        if len(writes) > MOST_WRITES:
            raise TooLarge(f"{self!r}: a transaction of {len(writes)} changes; at most {MOST_WRITES} are allowed")
        size = sum(PER_WRITE + len(one.value) + 4 * (len(one.key) + len(one.namespace)) for one in writes)
        if size > self._most:
            raise TooLarge(
                f"{self!r}: this transaction is {size} bytes long; at most {self._most} are allowed "
                f"(calls.max_body is {show_size(self._max_bytes)}): split it"
            )

    # --- the parts of a transaction -----------------------------------------------------------------------

    def put(self, key: str, value: Any, *, etag: str | None = None, ttl: Duration | None = None) -> Write:
        """A `set`, for `transaction`."""
        body = encode(self.name, check_key(self.name, key), value, self._hint)
        if len(body) + PER_WRITE + 4 * (len(key) + len(self.name)) > self._most:
            raise TooLarge(
                f"{self._at(key)}: the value is {len(body)} bytes long; at most {self._most} are allowed for it "
                "and its key "
                f"(calls.max_body is {show_size(self._max_bytes)}). Store large data as files, and their names here."
            )
        return Write(
            namespace=self.name,
            key=key,
            verb="set",
            new_etag=ids.etag(),
            value=body,
            etag=self._etag(key, etag),
            ttl_s=self._ttl(key, ttl),
        )

    def remove(self, key: str, *, etag: str | None = None) -> Write:
        """A `delete`, for `transaction`."""
        check_key(self.name, key)
        return Write(namespace=self.name, key=key, verb="delete", new_etag=ids.etag(), etag=self._etag(key, etag))

    def plus(self, key: str, by: int = 1, *, ttl: Duration | None = None) -> Write:
        """An `add`, for `transaction`."""
        check_key(self.name, key)
        if not isinstance(by, int) or isinstance(by, bool) or by not in _INT64:
            raise BadRequest(f"{self._at(key)}: by={by!r} is not a whole number of 64 bits")
        return Write(namespace=self.name, key=key, verb="add", new_etag=ids.etag(), by=by, ttl_s=self._ttl(key, ttl))

    def _etag(self, key: str, etag: Any) -> str | None:
        if etag is not None and not isinstance(etag, str):
            raise BadRequest(
                f'{self._at(key)}: etag={etag!r} is not an etag; pass the one from get(), "" to require that the '
                "key is "
                "absent, or omit it to write unconditionally"
            )
        return etag

    def _ttl(self, key: str, ttl: Duration | None) -> float:
        if ttl is None:
            return 0.0
        try:
            seconds = read_seconds(ttl)
        except ValueError as exc:
            why = f": {exc}" if str(exc) else ""
            raise BadRequest(
                f'{self._at(key)}: ttl={ttl!r} is not a time like "30m" or a number of seconds{why}'
            ) from None
        if seconds <= 0:
            raise BadRequest(f"{self._at(key)}: ttl={ttl!r} is not positive; omit it to keep the value without end")
        return seconds

    # --- inside -------------------------------------------------------------------------------------------

    @property
    def _most(self) -> int:
        return max(self._max_bytes - AROUND, 0)

    def _patience(self) -> float:
        return patience(self._clock.now(), self._timeout_s)

    def _at(self, key: str) -> str:
        return f'state "{self.name}", key "{key if len(key) <= 60 else key[:59] + "…"}"'

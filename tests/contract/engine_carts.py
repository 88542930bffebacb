"""State as a test uses it: one namespace of an engine."""

from __future__ import annotations

from typing import Any

import msgspec
from engine_rig import T_S

from mesh import ids
from mesh.state.contract import Entry, StateStore, Write


class Carts:
    """One namespace, as one process has it."""

    def __init__(self, state: StateStore, namespace: str = "carts") -> None:
        self.state = state
        self.namespace = namespace

    async def entry(self, key: str) -> Entry | None:
        return (await self.state.get(self.namespace, [key], timeout_s=T_S))[0]

    async def get(self, key: str) -> Any:
        entry = await self.entry(key)
        return msgspec.msgpack.decode(entry.value) if entry is not None else None

    async def etag(self, key: str) -> str:
        entry = await self.entry(key)
        return entry.etag if entry is not None else ""

    async def set(self, key: str, value: Any, **fields: Any) -> Entry:
        return await self._one(self.put(key, value, **fields))

    async def add(self, key: str, by: int, **fields: Any) -> int:
        entry = await self._one(Write(self.namespace, key, "add", ids.etag(), by=by, **fields))
        return msgspec.msgpack.decode(entry.value, type=int)

    async def delete(self, key: str, etag: str | None = None) -> None:
        write = Write(self.namespace, key, "delete", ids.etag(), etag=etag)
        assert await self.state.write([write], timeout_s=T_S) == [None]

    async def _one(self, write: Write) -> Entry:
        entry = (await self.state.write([write], timeout_s=T_S))[0]
        assert entry is not None
        assert entry.key == write.key
        return entry

    def put(self, key: str, value: Any, **fields: Any) -> Write:
        return Write(self.namespace, key, "set", ids.etag(), value=msgspec.msgpack.encode(value), **fields)

    async def keys(self, prefix: str = "", limit: int = 100) -> list[str]:
        """All of them, page by page."""
        found: list[str] = []
        while True:
            after = found[-1] if found else ""
            page = await self.state.page(self.namespace, prefix=prefix, after=after, limit=limit, timeout_s=T_S)
            if not page:
                return found
            assert len(page) <= limit
            found += [entry.key for entry in page]

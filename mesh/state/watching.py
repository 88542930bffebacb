"""The keys that are watched in this process: one reader for all that wait for changes.

Owns: finding changes of keys, and telling each watcher the present value of its key.
Leaves to others: reading (the engine), Python values (namespace), authorization (the engine's guard).

A watcher gets the value that a key has, not every value that it had: of two writes within POLL_S only the last is seen.
Nothing is kept for a watcher, so one that was away compares etags, and gets the present value if it does not know it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import Context
from typing import Final

from mesh.clock import Clock
from mesh.errors import MeshError, TryLater, Uncertain
from mesh.state.contract import Entry, StateStore
from mesh.state.reading import AT_ONCE, read_entries
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.state")

#: How often watched keys are read: half of this is the mean delay of a change.
POLL_S: Final = 0.1


class _Watcher:
    """One that waits for changes of a key."""

    __slots__ = ("at", "begins", "entry", "error", "etag", "woken")

    def __init__(self, at: tuple[str, str], etag: str) -> None:
        self.at = at
        #: What it was told last; "" for an absent key.
        self.etag = etag
        #: The first read of the poll that may tell it something: what an earlier one finds may be older than its own.
        self.begins = 0
        self.entry: Entry | None = None
        self.error: MeshError | None = None
        self.woken = asyncio.Event()

    def tell(self, entry: Entry | None) -> None:
        """The key has this value now."""
        if (entry.etag if entry is not None else "") != self.etag:
            self.entry = entry
            self.woken.set()
        else:
            # It has changed back before the watcher took the change.
            self.woken.clear()


class Watching:
    """The watchers of one process.

    Args:
        store: gives the engine's state.
        timeout_s: how long one read may take.
    """

    def __init__(self, store: Callable[[], StateStore], clock: Clock, timeout_s: float) -> None:
        self._store = store
        self._clock = clock
        self._timeout_s = timeout_s
        self._watchers: dict[tuple[str, str], set[_Watcher]] = {}
        self._task: asyncio.Task[None] | None = None
        #: The number of the read of the poll that began last.
        self._number = 0

    async def follow(self, namespace: str, key: str, etag: str) -> AsyncGenerator[Entry | None]:
        """The present entry of a key unless it has this etag, and then each that it has later; None while it is absent.

        While the engine restarts, it waits.

        Raises:
            Forbidden: `[access]` does not allow to read the namespace.
        """
        watcher = _Watcher((namespace, key), etag)
        self._watchers.setdefault(watcher.at, set()).add(watcher)
        try:
            while True:
                try:
                    found = (await self._read(namespace, [key]))[0]
                    break
                except (TryLater, Uncertain):
                    await self._clock.sleep(POLL_S)
            watcher.begins = self._number + 1
            watcher.tell(found)
            self._start()
            while True:
                await watcher.woken.wait()
                watcher.woken.clear()
                if watcher.error is not None:
                    raise watcher.error
                entry = watcher.entry
                watcher.etag = entry.etag if entry is not None else ""
                yield entry
        finally:
            others = self._watchers[watcher.at]
            others.discard(watcher)
            if not others:
                del self._watchers[watcher.at]

    def _start(self) -> None:
        if self._task is None:
            # In a context of its own: the deadline of the request that watches first is not that of the poll.
            self._task = asyncio.get_running_loop().create_task(
                self._poll(), name="mesh.state watch", context=Context()
            )

    async def _poll(self) -> None:
        while self._watchers:
            await self._clock.sleep(POLL_S)
            by_namespace: dict[str, list[str]] = {}
            for namespace, key in self._watchers:
                by_namespace.setdefault(namespace, []).append(key)
            for namespace, keys in by_namespace.items():
                for start in range(0, len(keys), AT_ONCE):
                    await self._look(namespace, keys[start : start + AT_ONCE])
        self._task = None

    async def _look(self, namespace: str, keys: Sequence[str]) -> None:
        self._number += 1
        try:
            entries = await self._read(namespace, keys)
        except (TryLater, Uncertain) as exc:
            # The store restarts: the watchers wait for it.
            log.debug("state.watch_interrupted", error=exc.message)
            return
        except MeshError as exc:
            for key in keys:
                for watcher in self._watchers.get((namespace, key), ()):
                    watcher.error = exc
                    watcher.woken.set()
            return
        for key, entry in zip(keys, entries, strict=True):
            for watcher in self._watchers.get((namespace, key), ()):
                if self._number >= watcher.begins:
                    watcher.tell(entry)

    async def _read(self, namespace: str, keys: Sequence[str]) -> list[Entry | None]:
        return await read_entries(self._store(), namespace, keys, lambda: self._timeout_s)

    async def close(self) -> None:
        """End the poll."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

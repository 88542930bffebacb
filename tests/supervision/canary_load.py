"""Requests to a project through its gateway, on connections that are kept, all the while."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp


class Load:
    """What was answered.

    Attributes:
        answers: (seconds since the beginning, status; 0 for a broken connection, first word of the answer).
    """

    def __init__(self, url: str, rate: float, connections: int) -> None:
        self._url = url
        self._period_s = connections / rate
        self._connections = connections
        self._over = threading.Event()
        self._began = time.monotonic()
        self.answers: list[tuple[float, int, str]] = []

    @property
    def statuses(self) -> Counter[int]:
        """How many answers had which status."""
        return Counter(status for _, status, _ in self.answers)

    def words(self, since_s: float = 0.0) -> Counter[str]:
        """How many answers began with which word."""
        return Counter(word for at, status, word in self.answers if status == 200 and at >= since_s)

    @property
    def at_s(self) -> float:
        return time.monotonic() - self._began

    def run(self) -> None:
        asyncio.run(self._all())

    def stop(self) -> None:
        self._over.set()

    async def _all(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session:
            await asyncio.gather(*(self._one(session, number) for number in range(self._connections)))

    async def _one(self, session: aiohttp.ClientSession, number: int) -> None:
        due = time.monotonic() + self._period_s * number / self._connections
        while not self._over.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + self._period_s, time.monotonic() - 1.0)
            try:
                async with session.get(self._url) as response:
                    text = await response.text()
                    self.answers.append((self.at_s, response.status, text.strip('"').split(",")[0]))
            except (aiohttp.ClientError, TimeoutError):
                self.answers.append((self.at_s, 0, ""))


@contextmanager
def load(url: str, rate: float = 300.0, connections: int = 8) -> Iterator[Load]:
    """So many requests a second, while the block runs."""
    made = Load(url, rate, connections)
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join()

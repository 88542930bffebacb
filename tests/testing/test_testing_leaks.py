"""A leak is found and named."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from mesh.testing import leaks, no_leaks


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "PATIENCE_S", 0.05)


async def test_nothing_is_no_leak():
    """Nor is what has ended."""
    async with no_leaks():
        await asyncio.create_task(asyncio.sleep(0))


async def test_a_task_is_a_leak():
    """Named by what it runs."""
    with pytest.raises(AssertionError, match=r"tasks left behind: .*forgotten"):
        async with no_leaks():
            task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_thread_is_a_leak():
    """Named."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="forgotten")
    with pytest.raises(AssertionError, match="threads left behind: forgotten"):
        async with no_leaks():
            thread.start()
    go.set()
    thread.join()


async def test_an_open_file_is_a_leak():
    """With its number and what it is."""
    with pytest.raises(AssertionError, match=r"open files left behind: \d+ → pipe"):
        async with no_leaks():
            ends = os.pipe()
    for end in ends:
        os.close(end)


async def test_a_test_that_fails_is_told_as_itself():
    """What it left behind comes second."""
    tasks = []

    async def a_test() -> None:
        async with no_leaks():
            tasks.append(asyncio.create_task(asyncio.Event().wait()))
            raise KeyError

    with pytest.raises(KeyError):
        await a_test()
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

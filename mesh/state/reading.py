"""Reading entries that may be too large for one answer.

Owns: splitting the keys. Leaves to others: the store (an engine), how long to wait for it (the caller).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from mesh.errors import TooLarge
from mesh.state.contract import Entry, StateStore

#: Keys requested at a time.
AT_ONCE: Final = 1000


async def read_entries(
    store: StateStore, namespace: str, keys: Sequence[str], timeout_s: Callable[[], float]
) -> list[Entry | None]:
    """The entries, in the order of the keys; None for an absent key.

    Args:
        keys: AT_ONCE at most.
        timeout_s: how long one request may wait for the engine, in seconds.

    Raises:
        TooLarge: a single entry exceeds the limit of one answer.
    """
    try:
        return await store.get(namespace, keys, timeout_s=timeout_s())
    except TooLarge:
        if len(keys) == 1:
            raise
    half = len(keys) // 2
    first = await read_entries(store, namespace, keys[:half], timeout_s)
    return first + await read_entries(store, namespace, keys[half:], timeout_s)

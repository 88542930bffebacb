"""A queue that tenants share equally: which tenant is next, and which one gives way when it is full.

Owns: the order of waiting items, and the choice of the item that is displaced.
Leaves to others: what the items are, how many may wait (policy.limits, calls.waiting).

The tenants that wait take turns; the items of one tenant keep their order. Items without a tenant belong to one tenant,
"". As long as no other waits, this is a queue in order of arrival.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class FairQueue(Generic[Item]):
    """Waiting items by tenant.

    Attributes:
        tenants: the tenant of each waiting item, in order of arrival. It stays the same object, so that code on a hot
            path can keep it and ask whether it is empty.
    """

    # OrderedDicts, not dicts: finding the first item of a dict scans the slots of all items removed before it.
    __slots__ = ("_lines", "tenants")

    def __init__(self) -> None:
        self.tenants: OrderedDict[Item, str] = OrderedDict()
        #: The items of each tenant that waits; the next tenant is the first.
        self._lines: OrderedDict[str, OrderedDict[Item, None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.tenants)

    def push(self, item: Item, tenant: str = "") -> None:
        """Add an item behind those of its tenant; it must not wait already."""
        self.tenants[item] = tenant
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = OrderedDict()
        line[item] = None

    def pop(self) -> Item:
        """Remove and return the next item.

        Raises:
            StopIteration: nothing waits.
        """
        lines = self._lines
        tenant = next(iter(lines))
        line = lines[tenant]
        item = line.popitem(last=False)[0]
        del self.tenants[item]
        if not line:
            del lines[tenant]
        elif len(lines) > 1:
            lines.move_to_end(tenant)
        return item

    def remove(self, item: Item) -> bool:
        """Remove an item from any position, in constant time; returns whether it was waiting."""
        tenant = self.tenants.pop(item, None)
        if tenant is None:
            return False
        line = self._lines[tenant]
        del line[item]
        if not line:
            del self._lines[tenant]
        return True

    def displaceable(self, tenant: str) -> Item | None:
        """The item that gives way to a new one of `tenant` in a full queue: the newest one of the tenant with the most.

        Returns:
            None when no tenant would still have at least as many items as `tenant` afterwards: then the new item is
            refused.
        """
        lines = self._lines
        # Without other tenants, and when each has one item, there is nothing to compare.
        if (len(lines) < 2 and tenant in lines) or len(lines) == len(self.tenants):
            return None
        longest = max(lines.values(), key=len)
        if len(lines.get(tenant, ())) + 1 >= len(longest):
            return None
        return next(reversed(longest))

    def clear(self) -> list[Item]:
        """Remove and return all items, in order of arrival."""
        items = list(self.tenants)
        self.tenants.clear()
        self._lines.clear()
        return items

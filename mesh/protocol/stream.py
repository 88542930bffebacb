"""Flow control of one stream, for the sender and the reader.

Owns: how many items may be sent, and when the reader grants more.
Leaves to others: the items, and the messages that carry the credit (caller, callee).
"""

from __future__ import annotations

from mesh.errors import ProtocolViolation

#: Items that the sender may send ahead. 256 small items fill a frame or two, and a slow reader buffers no more.
WINDOW = 256
#: The most credit that a sender accepts. No legitimate reader grants more; a bound keeps the counter from being abused.
MAX_CREDIT = 1 << 20


class Outflow:
    """The sender's half: each item uses one credit.

    Attributes:
        credit: how many items may be sent now.
    """

    __slots__ = ("credit",)

    def __init__(self, credit: int) -> None:
        self.credit = 0
        self.grant(credit)

    def grant(self, items: int) -> None:
        """The reader allows `items` more.

        Raises:
            ProtocolViolation: a grant that is negative or absurdly large.
        """
        if items < 0 or self.credit + items > MAX_CREDIT:
            raise ProtocolViolation(f"credit: {items} more items is not a legal grant")
        self.credit += items

    def take(self) -> bool:
        """Use one credit; False when there is none and the sender must wait."""
        if self.credit <= 0:
            return False
        self.credit -= 1
        return True


class Inflow:
    """The reader's half: grants consumed items again, in batches of half a window.

    Granting each item singly would cost a message each; waiting for the whole window would stall the sender.
    """

    __slots__ = ("_allowed", "_consumed", "begun", "window")

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self._allowed = window
        self._consumed = 0
        #: Whether an item has arrived.
        self.begun = False

    def arrived(self) -> None:
        """An item arrived.

        Raises:
            ProtocolViolation: the sender had no credit for it.
        """
        if self._allowed <= 0:
            raise ProtocolViolation("item: sent without credit")
        self._allowed -= 1
        self.begun = True

    def consumed(self) -> int:
        """The reader consumed an item. Returns how many items to grant now (0: send no credit yet)."""
        self._consumed += 1
        if self._consumed * 2 < self.window:
            return 0
        grant, self._consumed = self._consumed, 0
        self._allowed += grant
        return grant

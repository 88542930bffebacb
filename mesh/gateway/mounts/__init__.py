"""Mounts: everything that a gateway answers, one prefix and one file each.

Owns: the public names for writing a mount; docs/http.md, "Write a mount", has a complete example.
Leaves to others: the contract (contract), the table (registry), mounts of other packages (external).
"""

from mesh.gateway.mounts.contract import Answer, BadMount, Handler, Mount, Stream
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request

__all__ = ["Answer", "BadMount", "Handler", "Mount", "Reply", "Request", "Stream"]

"""The settings of WebSockets.

Owns: the type and the defaults. Leaves to others: the tree (config.settings), applying them (gateway.websocket). The
guide is docs/websocket.md.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct, field

from mesh.config.values import DURATION, DURATION_OR_ZERO, FLAG, SIZE


class WebSocketSettings(Struct, frozen=True, kw_only=True):
    """[gateway.websocket]: the connections of `@http.websocket` routes."""

    max_message_bytes: Annotated[int, SIZE, "the largest message of a client"] = field(
        default=2**20, name="max_message"
    )
    ping_s: Annotated[float, DURATION_OR_ZERO, "how often to ping; a client that does not answer is disconnected"] = (
        field(default=30.0, name="ping")
    )
    lifetime_s: Annotated[float, DURATION, "how long a connection may last; the client then connects again"] = field(
        default=86400.0, name="lifetime"
    )
    backlog_bytes: Annotated[
        int, SIZE, "unsent published messages of one client; a client that is further behind is disconnected"
    ] = field(default=2**20, name="backlog")
    compress: Annotated[bool, FLAG, "offer permessage-deflate; costs about 64 KiB and CPU for each connection"] = False

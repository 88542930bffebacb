"""WebSockets: connections of `@http.websocket` routes, and messages that services publish to many of them.

Owns: nothing here. Leaves to others: one connection (session), codes for its end (closing), topics (rooms), frames that
are written to many connections (frames).
"""

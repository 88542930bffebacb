"""Login sessions of browsers: a signed cookie, begun and ended by answers of handlers.

Owns: nothing here. Leaves to others: the authentication method (method), answers that begin or end sessions (answers),
keys (keys), the content of the cookie (token), the cookies themselves (cookies), requests of other sites (csrf), ended
sessions (revocation).

A session is stateless but for its end: the gateway signs what a handler has said about its user, and each request
brings it back. docs/sessions.md has the threats that this is built against.
"""

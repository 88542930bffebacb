"""Answers HTTP requests with status 503 while the code of `mesh dev` does not start.

Without it, a browser would wait until the next save: the parent keeps the listening socket open for the next process.
The reason is only on the terminal, as the text of an error may be secret.

Owns: a thread that answers one connection after the other. Leaves to others: when it runs (dev).
"""

from __future__ import annotations

import select
import socket
import threading
import time
from typing import Final

_BODY: Final = (
    b'{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the code does not start; the terminal '
    b'of mesh dev shows why","code":"unavailable","retryable":true}'
)
_ANSWER: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n%b"
) % (len(_BODY), _BODY)
#: How long one client may take; the others wait meanwhile.
_CLIENT_S: Final = 0.5
#: How much of a request is read.
_MOST: Final = 1 << 20


class Apology:
    """Answers on a listening socket, between `start` and `stop`."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._thread: threading.Thread | None = None
        self._ask, self._asked = socket.socketpair()

    def start(self) -> None:
        """Begin to answer."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mesh-dev-apology", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Answer no more; new connections wait for the next process. Harmless when called again."""
        if self._thread is not None:
            self._ask.send(b".")
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Stop, and release what belongs to it; not the listening socket."""
        self.stop()
        self._ask.close()
        self._asked.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener, self._asked], [], [])
            if self._asked in ready:
                self._asked.recv(1)
                return
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue
            with client:
                try:
                    _answer(client)
                except OSError:
                    pass  # the client has gone, or is too slow


def _answer(client: socket.socket) -> None:
    until = time.monotonic() + _CLIENT_S
    client.settimeout(_CLIENT_S)
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _MOST:
        piece = client.recv(65536)
        if not piece:
            return
        head += piece
    client.sendall(_ANSWER)
    client.shutdown(socket.SHUT_WR)
    # Read what still arrives: closing with unread bytes would reset the connection, and the answer would be lost.
    while (left := until - time.monotonic()) > 0:
        client.settimeout(left)
        if not client.recv(65536):
            return

"""The servers that requests are forwarded to: a connection pool each, and which of them gets the next request.

Owns: the list, which may change while requests run; balancing; ejecting servers that refuse connections.
Leaves to others: sending a request (forwarding), active checks (upstream_health), where the list comes from.

A server that cannot be connected to is passed over for a while, unless there is no other. One that fails its active
checks gets no request at all.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Final

import aiohttp
from yarl import URL

from mesh.config.edge_proxy import ProxySettings, unix_path
from mesh.errors import Overloaded, Unavailable

#: How long a server that refused a connection is passed over; doubled with each further failure.
EJECT_S: Final = 0.5
EJECT_MOST_S: Final = 30.0

#: What the parser accepts of an answer's head. aiohttp's default of 8 KiB is less than applications with large cookies
#: and policies send.
_LONGEST_FIELD: Final = 32 * 1024
#: Bytes of one answer that are read ahead of a slow client; aiohttp holds up to twice as many.
_BUFFER_BYTES: Final = 64 * 1024


class Upstream:
    """One server.

    Attributes:
        address: as configured.
        base: the URL that paths are added to.
        in_flight: requests that it is answering now.
        healthy: the result of its active checks; True without any.
        failures: connections that failed since the last success.
        ejected_until: until when it is passed over, by the clock of the list.
    """

    def __init__(self, address: str, settings: ProxySettings) -> None:
        self.address = address
        self._unix = unix_path(address)
        self.base = URL("http://localhost" if self._unix else address)
        self._keep_alive_s = settings.keep_alive_s
        self._connect_timeout_s = settings.connect_timeout_s
        self.in_flight = 0
        self.healthy = True
        self.failures = 0
        self.ejected_until = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._retired = False

    def __repr__(self) -> str:
        return f"<Upstream {self.address}>"

    @property
    def host(self) -> str:
        """Its own Host field."""
        return self.base.raw_authority

    @property
    def session(self) -> aiohttp.ClientSession:
        """Its connection pool. `in_flight` limits the connections."""
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._unix:
                connector = aiohttp.UnixConnector(self._unix, limit=0, keepalive_timeout=self._keep_alive_s)
            else:
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=self._keep_alive_s)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
                max_line_size=_LONGEST_FIELD,
                max_field_size=_LONGEST_FIELD,
                read_bufsize=_BUFFER_BYTES,
            )
            # aiohttp would repeat PUT and DELETE, with a body that has been consumed.
            self._session._retry_connection = False
        return self._session

    async def release(self) -> None:
        """A request has ended."""
        self.in_flight -= 1
        if self._retired and not self.in_flight:
            await self.close()

    async def retire(self) -> None:
        """Close its connections once its requests have ended."""
        self._retired = True
        if not self.in_flight:
            await self.close()

    async def close(self) -> None:
        """Close its connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class Upstreams:
    """The servers behind one prefix.

    Args:
        addresses: "http://host:port", "https://…" or "http+unix:/path".
        settings: the limits of each.
        now: the monotonic clock, in seconds.
    """

    def __init__(self, addresses: Iterable[str], settings: ProxySettings, now: Callable[[], float]) -> None:
        self._settings = settings
        self._now = now
        self._turn = 0
        self.all: list[Upstream] = [Upstream(each, settings) for each in dict.fromkeys(addresses)]

    async def replace(self, addresses: Iterable[str]) -> None:
        """Use other servers from now on. Those that stay keep their connections; running requests end as they would."""
        wanted = list(dict.fromkeys(addresses))
        known = {each.address: each for each in self.all}
        self.all = [known.get(address) or Upstream(address, self._settings) for address in wanted]
        for address, upstream in known.items():
            if address not in wanted:
                await upstream.retire()

    def choose(self, tried: Container[Upstream] = ()) -> Upstream:
        """The server for the next request: the one with the fewest requests in flight, in turn among equals.

        Args:
            tried: servers to leave out, because the request has failed there.

        Raises:
            Unavailable: there is none, or none is healthy.
            Overloaded: all are at their limit of concurrent requests.
        """
        healthy = [each for each in self.all if each.healthy and each not in tried]
        if not healthy:
            raise Unavailable("no upstream server is available", details={"retry_after_s": 1})
        free = [each for each in healthy if each.in_flight < self._settings.connections]
        if not free:
            raise Overloaded(
                f"each upstream server is answering {self._settings.connections} requests already",
                details={"retry_after_s": 1},
            )
        if len(free) == 1:
            return free[0]
        now = self._now()
        usable = [each for each in free if each.ejected_until <= now]
        if not usable:
            # Perhaps they are back; refusing the request would be no better than trying.
            return min(free, key=lambda each: each.ejected_until)
        self._turn += 1
        turn = self._turn
        return min((usable[(turn + at) % len(usable)] for at in range(len(usable))), key=lambda each: each.in_flight)

    def failed(self, upstream: Upstream) -> None:
        """It could not be connected to."""
        upstream.ejected_until = self._now() + min(EJECT_MOST_S, EJECT_S * 2 ** min(upstream.failures, 10))
        upstream.failures += 1

    def succeeded(self, upstream: Upstream) -> None:
        """It has answered."""
        upstream.failures = 0
        upstream.ejected_until = 0.0

    async def close(self) -> None:
        """Close all connections."""
        for each in self.all:
            await each.close()

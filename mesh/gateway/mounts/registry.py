"""The table of mounts of one gateway.

Owns: the order of the mounts of mesh, finding the mount of a path, and conflicts of prefixes.
Leaves to others: the mounts themselves (one module each), those of other packages (external).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from mesh.config.exposure import withheld
from mesh.errors import MeshError, SetupError, UnknownRoute
from mesh.gateway.entry import Entry
from mesh.gateway.front import Front
from mesh.gateway.listeners.admin import only_on_admin
from mesh.gateway.mounts import (
    acme,
    docs,
    health,
    jobs,
    metrics,
    openapi,
    programs,
    proxy,
    routes,
    rpc,
    static,
    status,
    tasks,
)
from mesh.gateway.mounts.contract import Answer, BadMount, Mount
from mesh.gateway.mounts.serving import Serve, serve_counted, serve_foreign, serve_own
from mesh.gateway.openapi import Document
from mesh.gateway.openapi_parts import BadPart
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.gateway.routes import Reserved, allow_header
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

#: The mounts of mesh. A new protocol is a module and a line here. Their order is that of the OpenAPI document.
BUILT_IN: Final[tuple[Callable[[Front], Mount], ...]] = (
    routes.mount,
    rpc.mount,
    tasks.mount,
    jobs.mount,
    health.live_mount,
    health.ready_mount,
    metrics.mount,
    status.mount,
    openapi.mount,
    docs.mount,
)

#: `origin` of the mounts of mesh.
OWN: Final = "mesh"


class Mounted:
    """A mount in the table.

    Attributes:
        below: the prefix with a slash; no path begins with it when the mount is `exact`.
        origin: where it comes from: "mesh", or the entry of `gateway.mounts`.
        serve: the handler with the checks that its declaration asks for.
    """

    __slots__ = ("below", "mount", "origin", "prefix", "serve")

    def __init__(self, mount: Mount, origin: str, serve: Callable[[Request], Awaitable[Answer]]) -> None:
        self.mount = mount
        self.origin = origin
        self.prefix = mount.prefix
        # A path holds no NUL: nothing is below an exact mount.
        self.below = "\0" if mount.exact else mount.prefix + "/"
        self.serve = serve

    def __repr__(self) -> str:
        return f"<Mounted {self.prefix} of {self.origin}>"


class Mounts:
    """The mounts of one gateway. The mount "/" gets the paths of no other: the declared routes of services."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._by_segment: dict[str, tuple[Mounted, ...]] = {}
        self._all: list[Mounted] = []
        hidden = withheld(front.settings)
        for make in (*BUILT_IN, acme.mount) if front.settings.gateway.acme.domains else BUILT_IN:
            mount = make(front)
            serve = serve_own(mount)
            self._insert(Mounted(mount, OWN, only_on_admin(serve) if mount.prefix in hidden else serve))
        for kind in (static, proxy):
            for mount in kind.mounts(front):
                self._add(mount, kind.ORIGIN, serve_counted(front, mount))
        for origin, mount in programs.mounts(front):
            self._add(mount, origin, serve_counted(front, mount))
        front.catalog.reserve(self.reserved())

    def add(self, mount: Mount, origin: str) -> None:
        """Add a mount of another package.

        Args:
            origin: the entry of `gateway.mounts`, for errors and /mesh.

        Raises:
            BadMount: another mount has a prefix above or below it, or the same; or its OpenAPI part is broken.
        """
        self._check_prefix(mount, f'gateway.mounts: "{origin}"', origin)
        self._check_openapi(mount, origin)
        self._insert(Mounted(mount, origin, serve_foreign(self._front, mount)))
        self._front.catalog.reserve(self.reserved())

    def _add(self, mount: Mount, key: str, serve: Serve) -> None:
        """Add a mount of the table `key` of the settings. One of "/" gets the paths of no other mount and no route."""
        mounted = Mounted(mount, key, serve)
        if mount.prefix != "/":
            self._check_prefix(mount, f'{key} "{mount.prefix}"', key)
            self._insert(mounted)
            return
        if self._front.fallback is not None:
            raise BadMount(
                f'{key} "/": {self._front.fallback.origin} has "/" too; give one of them another prefix',
                details={"prefix": "/", "other": "/", "origin": key},
            )
        self._front.fallback = mounted
        self._all.append(mounted)

    def _check_prefix(self, mount: Mount, what: str, origin: str) -> None:
        for other in self:
            if _overlap(mount.prefix, other.prefix):
                raise BadMount(
                    f"{what} has the prefix {mount.prefix}, and {other.prefix} belongs to "
                    f"{'the gateway itself' if other.origin == OWN else other.origin}; choose another prefix",
                    details={"prefix": mount.prefix, "other": other.prefix, "origin": origin},
                )

    def _check_openapi(self, mount: Mount, origin: str) -> None:
        document = Document(self._front.catalog)
        try:
            for each in self._all:
                if each.origin != OWN:
                    openapi.add_mount(document, each.mount)
            openapi.add_mount(document, mount)
        except BadPart as exc:
            raise BadMount(f'gateway.mounts: "{origin}": {exc.message}') from exc
        except Exception as exc:
            reason = f"{type(exc).__name__}: {exc}"[:500]
            raise BadMount(f'gateway.mounts: "{origin}": its function openapi failed: {reason}') from exc

    def _insert(self, mounted: Mounted) -> None:
        self._all.append(mounted)
        if mounted.prefix == "/":
            self._rest = mounted
            return
        segment = mounted.prefix[1:].partition("/")[0]
        self._by_segment[segment] = (*self._by_segment.get(segment, ()), mounted)

    def __iter__(self) -> Iterator[Mounted]:
        return iter(self._all)

    def reserved(self) -> list[Reserved]:
        """The addresses where no declared route is served."""
        return [
            # Below the pages of mesh nothing is served, although some have only one address: a later release may.
            Reserved(each.prefix, "gateway", exact=False)
            if each.origin == OWN
            else Reserved(each.prefix, f"mount {each.origin}", exact=each.mount.exact)
            for each in self._all
            if each.prefix != "/"
        ]

    @asynccontextmanager
    async def lifespans(self) -> AsyncIterator[None]:
        """Start what mounts need, in the order of the table, and stop it in the opposite order.

        Raises:
            SetupError: a mount failed to start; those before it have been stopped.
        """
        async with AsyncExitStack() as stack:
            for each in self._all:
                if each.mount.lifespan is None:
                    continue
                try:
                    await stack.enter_async_context(each.mount.lifespan(self._front.node))
                except SetupError:
                    raise
                except Exception as exc:
                    _log.exception("mount.start_failed", mount=each.prefix, origin=each.origin)
                    raise SetupError(
                        f'gateway.mounts: "{each.origin}" failed to start: {type(exc).__name__}: {exc}'[:1000]
                    ) from exc
            yield

    def serve(self, request: Request) -> Awaitable[Answer]:
        """Start to answer a request with the mount of its path."""
        path = request.path
        mounts = self._by_segment.get(path[1:].partition("/")[0])
        if mounts is not None:
            for mounted in mounts:
                if path == mounted.prefix or path.startswith(mounted.below):
                    request.prefix = mounted.prefix
                    return mounted.serve(request)
        return self._rest.serve(request)

    def entry(self, request: Request) -> Entry:
        """What a request is for, for the concerns of the edge. Never raises: a path that leads nowhere has an entry
        without a name, and the mount reports the error later."""
        mounted = self._mounted(request.path)
        if mounted.mount.entry is not None:
            try:
                return mounted.mount.entry(request)
            except UnknownRoute:
                fallback = self._front.fallback
                if mounted is self._rest and fallback is not None and fallback.mount.entry is not None:
                    found: Entry = fallback.mount.entry(request)
                    return found
            except MeshError:
                pass
        return Entry(mounted.prefix)

    async def methods(self, request: Request) -> tuple[str, ...]:
        """The methods that the path of an OPTIONS request has; empty: its mount gets every method.

        Raises:
            MeshError: the path leads nowhere.
        """
        mounted = self._mounted(request.path)
        if mounted.mount.methods:
            return tuple(allow_header(mounted.mount.methods).split(", "))
        if mounted.origin != OWN:
            return ()
        # The mounts of mesh that look at methods themselves answer OPTIONS with Allow, and do nothing else.
        answer = await mounted.mount.handler(request)
        assert isinstance(answer, Reply)
        return tuple(answer.extra.decode().removeprefix("Allow: ").strip().split(", "))

    def _mounted(self, path: str) -> Mounted:
        for each in self._by_segment.get(path[1:].partition("/")[0], ()):
            if path == each.prefix or path.startswith(each.below):
                return each
        return self._rest


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")

"""[auth]: combinations of keys that make no sense, or would let in more than was meant.

Owns: these rules. Leaves to others: the validity of each value (config.edge_auth), files and secrets themselves
(gateway.edge.auth), reporting (config.load).
"""

from __future__ import annotations

from collections.abc import Iterator

from mesh.config.edge_auth import AuthSettings, JwtSettings, ProxySettings, is_safe_url
from mesh.config.edge_sessions import session_problems
from mesh.config.settings import Settings
from mesh.errors import ConfigError


def problems(settings: Settings) -> Iterator[tuple[str, str]]:
    """(the key, what is wrong with it), for each problem."""
    auth = settings.auth
    if settings.gateway.tls.client_ca is None:
        yield from _without_method(auth)
    yield from _jwt(auth.jwt)
    yield from _proxy(auth.proxy, settings.gateway.proxies)
    yield from session_problems(auth.sessions)


def require(settings: Settings, table: str) -> None:
    """Check the keys of one table once more, for settings that were made in code.

    Raises:
        ConfigError: a key is wrong.
    """
    for key, what in problems(settings):
        if key.startswith(f"{table}."):
            raise ConfigError(f"{key}: {what}")


def _without_method(auth: AuthSettings) -> Iterator[tuple[str, str]]:
    if auth.methods:
        return
    for key, given in (("default", auth.default is not None), ("mounts", auth.mounts), ("job_roles", auth.job_roles)):
        if given:
            # Its author believes that callers are authenticated.
            yield (
                f"auth.{key}",
                "no caller is authenticated: set a method, which is one of [auth.jwt], [auth.apikeys], [auth.basic], "
                "[auth.sessions] and [auth.proxy], or gateway.tls.client_ca",
            )


def _jwt(jwt: JwtSettings) -> Iterator[tuple[str, str]]:
    if not jwt.is_on:
        return
    sources = [name for name in ("jwks", "file", "secret") if getattr(jwt, name)]
    if len(sources) > 1:
        yield f"auth.jwt.{sources[1]}", f"keys come from one place, and auth.jwt.{sources[0]} is set, too"
    if not jwt.issuer:
        yield "auth.jwt.issuer", "is missing: a token must be of a known issuer (`iss`)"
    elif not sources and not is_safe_url(jwt.issuer):
        yield (
            "auth.jwt.issuer",
            "is not an https URL, so that its keys cannot be found there: set auth.jwt.jwks, file or secret",
        )
    if not jwt.audience:
        yield (
            "auth.jwt.audience",
            "is missing: without it, tokens of the same provider for other applications would be let in",
        )


def _proxy(proxy: ProxySettings, proxies: list[str]) -> Iterator[tuple[str, str]]:
    fields = {name: getattr(proxy, name) for name in ("header", "scopes", "roles", "tenant")}
    if proxy.header and not proxies:
        yield "auth.proxy.header", "no proxy is trusted: list its addresses in gateway.proxies"
    seen: dict[str, str] = {}
    for name, value in fields.items():
        if not value:
            continue
        if not proxy.header:
            yield f"auth.proxy.{name}", "auth.proxy.header is missing: it names the caller"
        if other := seen.get(value.lower()):
            yield f"auth.proxy.{name}", f"{value} is also auth.proxy.{other}"
        seen[value.lower()] = name

"""The keys of [services.NAME] that run a program which speaks HTTP, in place of service classes.

Owns: these keys, the syntax of their values, and the rules between them.
Leaves to others: the other keys of a service (config.settings), running the program (worker.program), routing requests
to it (gateway.mounts.programs).
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from msgspec import Struct, field, structs

from mesh.config.edge_proxy import ProxySettings
from mesh.config.prefix_tables import options_of
from mesh.config.values import DURATION, TEXT, Kind, list_of, whole
from mesh.suggest import suggestion

UNIX: Final = "unix:{socket}"

_SEGMENT: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@]+")


def _read_command(value: Any) -> list[str]:
    if isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError as exc:
            raise ValueError(f"it cannot be split into words: {exc}") from exc
    else:
        words = list(value) if isinstance(value, list | tuple) else []
        if not all(isinstance(word, str) and "\0" not in word for word in words):
            raise ValueError
    if not words or not words[0]:
        raise ValueError("it names no program")
    return words


def _read_http(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if text == UNIX:
        return text
    host, colon, port = text.rpartition(":")
    if not colon or port != "{port}":
        # A copy of the next release starts beside the old one, so no two copies can share a fixed port.
        raise ValueError("it must end in {port}, since every copy listens on a port of its own")
    if host in ("{host}", "localhost"):
        return text
    address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    if address.is_unspecified:
        raise ValueError('it is no address to connect to; write "{host}:{port}" to listen beyond this machine')
    if (address.version == 6) is not host.startswith("["):
        raise ValueError("it needs brackets around an IPv6 address")
    return text


def _read_route(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not text.startswith("/"):
        raise ValueError
    if text != "/":
        text = text.removesuffix("/")
        if any(_SEGMENT.fullmatch(each) is None or each in (".", "..") for each in text[1:].split("/")):
            raise ValueError
    return text


def _read_health(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError
    return text


#: The options of [gateway.proxy], without those that say where the server is and how it is checked.
_FORWARD: Final = {
    key: entry for key, entry in options_of(ProxySettings).items() if key not in ("to", "health", "health_every")
}
_FORWARDED: Final = ProxySettings(to=[])


def _read_forward(value: Any) -> ProxySettings:
    if isinstance(value, ProxySettings):
        return value
    if not isinstance(value, Mapping):
        raise ValueError
    changes = {}
    for key, each in value.items():
        if key not in _FORWARD:
            raise ValueError(f'it has no option "{key}"{suggestion(key, _FORWARD)}')
        attribute, kind = _FORWARD[key]
        try:
            changes[attribute] = kind.read(each)
        except (ValueError, OverflowError) as exc:
            why = str(exc)
            more = f" ({why})" if why.startswith("it ") else ""
            raise ValueError(f"it has a {key} that is not {kind.wanted}{more}") from None
    return structs.replace(_FORWARDED, **changes)


def _show_forward(value: ProxySettings) -> dict[str, Any]:
    return {
        key: kind.show(getattr(value, attribute))
        for key, (attribute, kind) in _FORWARD.items()
        if getattr(value, attribute) != getattr(_FORWARDED, attribute)
    }


COMMAND: Final = Kind('a command line like "node server.js"', _read_command, shlex.join)
HTTP: Final = Kind(f'an address like "127.0.0.1:{{port}}", "{{host}}:{{port}}" or "{UNIX}"', _read_http)
ROUTE: Final = Kind('a path like "/shop"', _read_route)
FORWARD: Final = Kind("a table of options like { strip = true }", _read_forward, _show_forward)
HEALTH: Final = Kind('a path like "/healthz"', _read_health)


class ProgramSettings(Struct, frozen=True, kw_only=True):
    """The keys of a service that is a program. See docs/programs.md."""

    command: Annotated[list[str], COMMAND, "a program that speaks HTTP, to run in place of a `class`"] = []
    http: Annotated[str, HTTP, "where the program listens"] = "127.0.0.1:{port}"
    route: Annotated[list[str], list_of(ROUTE, "paths"), "gateways send it the requests for these paths"] = []
    forward: Annotated[ProxySettings, FORWARD, "how it gets them: options as of [gateway.proxy], such as `strip`"] = (
        _FORWARDED
    )
    health: Annotated[str, HEALTH, "a path that answers below 400 when it is healthy; a TCP connect when absent"] = ""
    health_every_s: Annotated[float, DURATION, "interval of its health checks"] = field(
        default=2.0, name="health_every"
    )
    health_timeout_s: Annotated[float, DURATION, "how long a health check may take"] = field(
        default=2.0, name="health_timeout"
    )
    health_failures: Annotated[int, whole(0, 1000), "failed checks in a row after which it is replaced; 0: never"] = 10
    version: Annotated[str, TEXT, "the program's version, in `mesh ps`; the name of the release when absent"] = ""


def conflicts(name: str, service: Any) -> Iterator[tuple[str, str]]:
    """The contradictions in one [services.NAME], as (key, what is wrong).

    Args:
        service: its ServiceSettings.
    """
    if service.command and service.classes:
        yield "command", "a service is either a `class` or a `command`; split it into two services"
    if service.command:
        for key, used in (("target_in_flight", service.target_in_flight), ("target_latency", service.target_latency_s)):
            if used:
                yield key, "the calls of a program are not counted; its scaling follows `target_cpu`"
    elif service.route and not any(word.startswith(("asgi:", "wsgi:")) for word in service.classes):
        yield "route", "only a `command` or an application has routes here; a `class` declares its own with @http"
    elif service.forward != _FORWARDED:
        yield "forward", "only a service with a `command` gets forwarded requests"
    elif service.health:
        yield "health", "only a service with a `command` is checked in this way"

"""The kinds of configuration values and their syntax.

Owns: the kinds (port, duration, size, …): reading a value from TOML or from text, and writing it back.
Leaves to others: which key has which kind (config.settings), where a value comes from (config.load).
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mesh.config.secrets import HIDDEN, Secret


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        wanted: what is allowed, in words: error messages end in "is not …" and this text.
        read: (value from TOML, or text) -> typed value; raises ValueError for a wrong value. A text of this error
            that begins with "it " is added to the message.
        show: typed value -> the value in the syntax of the file.
        hidden: errors and pages do not show the value.
    """

    wanted: str
    read: Callable[[Any], Any]
    show: Callable[[Any], Any] = lambda value: value
    hidden: bool = False


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|KiB|MiB|GiB)")


def read_duration(value: Any) -> float:
    """Convert "10s", "250ms", "1m" or "1h30m" into seconds. A number without a unit is refused.

    Raises:
        ValueError: the value is not a duration.
    """
    if not isinstance(value, str):
        raise ValueError(f'it has no unit: write "{value}s"' if isinstance(value, int | float) else "")
    text, at, total = value.strip(), 0, 0.0
    while match := _DURATION.match(text, at):
        total += float(match[1]) * _SECONDS[match[2]]
        at = match.end()
    if not text or at != len(text):
        raise ValueError(f'it has no unit: write "{text}s"' if text.replace(".", "", 1).isdigit() else "")
    if not math.isfinite(total):
        raise ValueError("it is too long")
    return total


def read_seconds(value: Any) -> float:
    """Convert a duration given in code into seconds: a number of seconds (90, 2.5), or text with a unit like "90s".

    Raises:
        ValueError: the value is neither, or is not finite; the error may have no text.
    """
    if isinstance(value, str):
        return read_duration(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def show_duration(seconds: float) -> str:
    """The shortest exact form of a duration: 0.25 is "250ms", 90.0 is "90s", 120.0 is "2m"."""
    if seconds <= 0:
        return "0s"
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


def read_size(value: Any) -> int:
    """Convert "64MiB", "16 KiB", "1MB" or "512B" into bytes.

    Raises:
        ValueError: the value is not a size.
    """
    if not isinstance(value, str):
        raise ValueError(f'it has no unit: write "{value}B"' if isinstance(value, int) else "")
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f'it has no unit: write "{value.strip()}B"' if value.strip().isdigit() else "")
    size = float(match[1]) * _BYTES[match[2]]
    if not math.isfinite(size):
        raise ValueError("it is too large")
    return int(size)


def show_size(count: int) -> str:
    """The shortest exact form of a size: 67108864 is "64MiB"."""
    for unit in ("GiB", "MiB", "KiB"):
        if count >= _BYTES[unit] and count % _BYTES[unit] == 0:
            return f"{count // _BYTES[unit]}{unit}"
    return f"{count}B"


def _read_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError
    return int(value)


def _read_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    return float(value)


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _read_secret(value: Any) -> Secret:
    # Not through _read_text: the error of Secret explains what to write instead.
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ValueError
    return Secret(value)


def _read_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise ValueError


def _read_path(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    return Path(_read_text(value)).expanduser()


def _between(read: Callable[[Any], Any], least: float, most: float) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        typed = read(value)
        # Written this way, the check also refuses NaN.
        if not least <= typed <= most:
            raise ValueError
        return typed

    return check


def _positive_duration(value: Any) -> float:
    seconds = read_duration(value)
    if seconds <= 0:
        raise ValueError("it must be longer than 0 s")
    return seconds


def _positive_size(value: Any) -> int:
    count = read_size(value)
    if count <= 0:
        raise ValueError("it must be more than 0 B")
    return count


def whole(least: int, most: int = 2**31 - 1) -> Kind:
    """A whole number from `least` to `most`, both included."""
    words = f"a whole number from {least}" if most == 2**31 - 1 else f"a whole number ({least}–{most})"
    return Kind(words, _between(_read_int, least, most))


def number(least: float, most: float) -> Kind:
    """A number from `least` to `most`, both included."""
    return Kind(f"a number ({least:g}–{most:g})", _between(_read_float, least, most))


def choice(*words: str) -> Kind:
    """One of `words`."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value.strip().lower() not in words:
            raise ValueError
        return value.strip().lower()

    return Kind("one of " + ", ".join(words), read)


def list_of(kind: Kind, plural: str) -> Kind:
    """An array of `kind`; in text form, separated by commas."""

    def read(value: Any) -> list[Any]:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError
        return [kind.read(item) for item in value]

    return Kind(f"an array of {plural}", read)


def _read_endpoint(value: Any) -> str:
    text = _read_text(value)
    if text.startswith("ipc://") and len(text) > len("ipc://"):
        return text
    if text.startswith("tcp://"):
        host, _, port = text.removeprefix("tcp://").rpartition(":")
        if host and port.isdigit() and 1 <= int(port) <= 65535:
            return text
    raise ValueError


def _read_bind(value: Any) -> str:
    text = _read_text(value)
    if text == "ipc":
        return text
    if text.startswith("tcp://"):
        host, _, port = text.removeprefix("tcp://").rpartition(":")
        if host and (port == "*" or (port.isdigit() and 1 <= int(port) <= 65535)):
            return text
    raise ValueError


def _read_address(value: Any) -> str:
    text = _read_text(value)
    if ":" in text:  # an IPv6 address, with or without brackets
        address = ipaddress.IPv6Address(text.removeprefix("[").removesuffix("]"))
        if address.is_unspecified:
            raise ValueError
        text = f"[{address}]"
    elif text == "0.0.0.0" or not _HOST.fullmatch(text):
        raise ValueError
    return text


def _read_table(value: Any) -> dict[str, str]:
    if isinstance(value, str):  # in the environment: LANG=C,TZ=UTC
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if not all(equals and name.strip() for name, equals, _ in pairs):
            raise ValueError
        return {name.strip(): text for name, _, text in pairs}
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError
    return dict(value)


def _read_engine(value: Any) -> str:
    text = _read_text(value)
    return text if ":" in text else text.lower()


TEXT = Kind("a text", _read_text)
#: Whether there is such an engine is checked with all settings known (config.engine_tables).
ENGINE = Kind('an engine\'s name, or "module:attribute" of one', _read_engine)
TABLE = Kind('a table of texts like { LANG = "C" }', _read_table)
FLAG = Kind("true or false", _read_flag)
PATH = Kind("a path", _read_path, str)
#: A path that may be absent; an absent one is shown as an empty text.
PATH_OR_NONE = Kind("a path", _read_path, lambda path: "" if path is None else str(path))
SECRET = Kind(
    "a reference to a secret",
    _read_secret,
    lambda secret: "" if secret is None else HIDDEN,
    hidden=True,
)
PORT = Kind("a port (1–65535)", _between(_read_int, 1, 65535))
DURATION = Kind('a duration like "10s", "250ms" or "1m"', _positive_duration, show_duration)
DURATION_OR_ZERO = Kind('a duration like "10s" or "250ms"; "0s" switches it off', read_duration, show_duration)
SIZE = Kind('a size like "64MiB" or "16KiB"', _positive_size, show_size)
ADDRESS = Kind("a host's name or address, without a port", _read_address)
BIND = Kind('"ipc" or "tcp://HOST:*"', _read_bind)
ENDPOINTS = list_of(Kind("", _read_endpoint), 'endpoints like "ipc:///path" or "tcp://host:port"')
TEXTS = list_of(TEXT, "texts")

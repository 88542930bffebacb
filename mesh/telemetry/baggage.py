"""The W3C headers that accompany a traceparent: `tracestate` and `baggage`.

Owns: which received values are passed on, and reading and writing the entries of a baggage.
Leaves to others: the traceparent (traces), passing the values on (calls.propagation).

Both values are passed on as they were received. A value that is too long, or is no text that a header can have, is
dropped as a whole, as the specifications allow.

Sources: W3C Trace Context, section 3.3; W3C Baggage, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote

from mesh.errors import BadArguments

#: The longest tracestate, in characters: the length that every system must pass on.
MAX_TRACESTATE: Final = 512
#: The longest baggage, in characters, and its most entries; both are the limits of the specification.
MAX_BAGGAGE: Final = 8192
MAX_ENTRIES: Final = 180

#: Visible ASCII, spaces and tabs: the characters of a header's value.
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*", re.ASCII)
#: A token of RFC 9110, section 5.6.2.
_KEY: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
#: The characters of a value that need no percent-encoding; "%" always needs it.
_PLAIN: Final = "!#$&'()*+-./:<=>?@[]^_`{|}~"


def accept_tracestate(value: str) -> str:
    """A received tracestate, or "" when it cannot be passed on."""
    return value if len(value) <= MAX_TRACESTATE and _VALUE.fullmatch(value) else ""


def accept_baggage(value: str) -> str:
    """A received baggage, or "" when it cannot be passed on."""
    return value if len(value) <= MAX_BAGGAGE and _VALUE.fullmatch(value) else ""


def parse(header: str) -> dict[str, str]:
    """The entries of a baggage, percent-decoded. Malformed entries and properties (after `;`) are left out; of entries
    with the same key the last one counts."""
    entries = {}
    for member in header.split(","):
        key, found, value = member.partition(";")[0].partition("=")
        if found and _KEY.fullmatch(key := key.strip()):
            entries[key] = unquote(value.strip())
    return entries


def render(entries: Mapping[str, str]) -> str:
    """The header for these entries; values are percent-encoded where needed.

    Raises:
        BadArguments: a key is no token, a value is no text, or there are more than MAX_ENTRIES entries or more than
            MAX_BAGGAGE characters.
    """
    for key, value in entries.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise BadArguments(f"baggage: {str(key)[:100]!r} is not a key: use letters, digits, '-', '_' and '.'")
        if not isinstance(value, str):
            raise BadArguments(f"baggage: the value of {key[:100]!r} is {type(value).__name__}, not text")
    header = ",".join(f"{key}={quote(value, safe=_PLAIN)}" for key, value in entries.items())
    if len(entries) > MAX_ENTRIES or len(header) > MAX_BAGGAGE:
        raise BadArguments(
            f"baggage: {len(entries)} entries, {len(header):,} characters; at most {MAX_ENTRIES} entries and "
            f"{MAX_BAGGAGE:,} characters travel"
        )
    return header

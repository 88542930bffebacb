"""The keys that sign: the first signs, all verify.

Owns: deriving a key for each purpose from the configured secrets, and texts with a signature.
Leaves to others: what is signed (token, csrf), reading secrets (config.secrets).

A signed text is `ID.CONTENT.MAC`: the id of the key, the content in base64url, and the HMAC-SHA256 of both. The MAC is
compared as text and covers the text of the content, so that each signed text has exactly one valid form.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Final

from mesh.config.secrets import Secret
from mesh.errors import ConfigError

#: HMAC-SHA256 has a strength of 256 bits; 32 characters of hex digits have 128, which is the least.
LEAST_CHARACTERS: Final = 32
_FORM: Final = re.compile(r"([A-Za-z0-9_-]{8})\.([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]{43})")


class KeyRing:
    """The keys for one purpose. A text that was signed for one purpose is not valid for another.

    Args:
        purpose: a constant, such as b"mesh session 1".
        secrets: the first signs.
    """

    def __init__(self, purpose: bytes, secrets: Sequence[str]) -> None:
        keys = [hmac.digest(secret.encode(), purpose, "sha256") for secret in secrets]
        self._keys = {_encode(hashlib.sha256(b"id" + key).digest()[:6]): key for key in keys}
        self._first = next(iter(self._keys))

    def sign(self, content: bytes) -> str:
        """The signed text."""
        text = f"{self._first}.{_encode(content)}"
        return f"{text}.{_mac(self._keys[self._first], text)}"

    def content(self, text: str) -> bytes | None:
        """The content of a signed text; None when no key has signed it."""
        found = _FORM.fullmatch(text)
        if found is None:
            return None
        id, content, mac = found.groups()
        key = self._keys.get(id)
        if key is None or not hmac.compare_digest(_mac(key, f"{id}.{content}"), mac):
            return None
        return urlsafe_b64decode(content + "=" * (-len(content) % 4))

    def is_latest(self, text: str) -> bool:
        """Whether the first key has signed this valid text."""
        return text.startswith(self._first)


def reveal_all(secrets: Sequence[Secret], setting: str) -> list[str]:
    """The secrets themselves.

    Raises:
        ConfigError: one cannot be read, is too short, or is there twice.
    """
    found: list[str] = []
    for secret in secrets:
        try:
            value = secret.reveal()
        except ConfigError as exc:
            raise ConfigError(f"{setting}: {exc.message}") from exc
        if len(value) < LEAST_CHARACTERS or len(set(value)) < 8:
            raise ConfigError(
                f"{setting}: {secret.reference} is too easy to guess: a secret has at least {LEAST_CHARACTERS} "
                "characters, such as the output of `openssl rand -hex 32`"
            )
        if value in found:
            raise ConfigError(f"{setting}: {secret.reference} is the same secret as one before it")
        found.append(value)
    return found


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _mac(key: bytes, text: str) -> str:
    return _encode(hmac.digest(key, text.encode(), "sha256"))

"""The PROXY protocol, versions 1 and 2: what a proxy says about a connection before its first byte.

Owns: the format. Pure: bytes in, address out. Source: HAProxy's proxy-protocol.txt, sections 2.1 and 2.2.
Leaves to others: reading from the socket, and whether the peer may speak it (acceptor).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Final, NamedTuple

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
#: "PROXY UNKNOWN" and all addresses at their longest, with CR LF.
LONGEST_V1: Final = 107
#: Addresses and TLVs of version 2. The TLVs of a client certificate are below 1 KiB; the format allows 64 KiB.
LONGEST_V2: Final = 4096

_HEAD: Final = struct.Struct("!BBH")
_LOCAL, _PROXY = 0x20, 0x21
#: Address family and transport -> (family, size of one address).
_FAMILIES: Final = {0x11: (socket.AF_INET, 4), 0x21: (socket.AF_INET6, 16)}
_WORDS: Final = {b"TCP4": 4, b"TCP6": 6}
_TLV_SSL: Final = 0x20
_CLIENT_SSL: Final = 0x01


class MalformedHeader(ValueError):
    """The connection does not begin with a header of the PROXY protocol."""


class Told(NamedTuple):
    """What the proxy says about a connection.

    Attributes:
        address: of the client; "" when the connection is the proxy's own (a health check), or the client is unknown.
        secure: the client has spoken TLS to the proxy. Only version 2 says so.
    """

    address: str
    secure: bool = False


class Header:
    """Reads one header, from pieces.

    Attributes:
        told: the result, once the header is complete.
    """

    def __init__(self) -> None:
        self._bytes = b""
        self.told: Told | None = None

    def take(self, seen: bytes) -> int:
        """Take the bytes that belong to the header.

        Args:
            seen: the next bytes of the connection.

        Returns:
            How many of them belong to the header; the others are the client's.

        Raises:
            MalformedHeader: they are not a header.
        """
        whole = self._bytes + seen
        end = _end_v2(whole) if whole[:1] == SIGNATURE[:1] else _end_v1(whole)
        if end <= len(whole):
            self.told = _read_v2(whole[:end]) if whole[:1] == SIGNATURE[:1] else _read_v1(whole[:end])
            taken = end - len(self._bytes)
            self._bytes = whole[:end]
            return taken
        self._bytes = whole
        return len(seen)


def _end_v1(whole: bytes) -> int:
    """Where the header ends; beyond what is there when it is not complete."""
    begin = b"PROXY "
    if not whole.startswith(begin[: len(whole)]):
        raise MalformedHeader("no header of the PROXY protocol")
    end = whole.find(b"\r\n", 0, LONGEST_V1)
    if end < 0 and len(whole) >= LONGEST_V1:
        raise MalformedHeader("the line does not end")
    return end + 2 if end >= 0 else len(whole) + 1


def _read_v1(line: bytes) -> Told:
    words = line[:-2].split(b" ")
    if words[1] == b"UNKNOWN":
        return Told("")
    version = _WORDS.get(words[1])
    if version is None or len(words) != 6:
        raise MalformedHeader("not TCP4, TCP6 or UNKNOWN with four values")
    try:
        addresses = [ipaddress.ip_address(word.decode("ascii")) for word in words[2:4]]
    except ValueError as exc:
        raise MalformedHeader("not an address") from exc
    ports = words[4:]
    if any(each.version != version for each in addresses) or not all(_is_port(each) for each in ports):
        raise MalformedHeader("addresses of another family, or not a port")
    return Told(str(addresses[0]))


def _is_port(word: bytes) -> bool:
    return word.isdigit() and len(word) <= 5 and int(word) <= 65535 and (word == b"0" or not word.startswith(b"0"))


def _end_v2(whole: bytes) -> int:
    known = len(SIGNATURE)
    if not whole.startswith(SIGNATURE[: len(whole)]):
        raise MalformedHeader("no header of the PROXY protocol")
    if len(whole) < known + _HEAD.size:
        return len(whole) + 1
    command, _, length = _HEAD.unpack_from(whole, known)
    if command not in (_LOCAL, _PROXY):
        raise MalformedHeader("another version or command")
    if length > LONGEST_V2:
        raise MalformedHeader("longer than 4 KiB")
    return known + _HEAD.size + int(length)


def _read_v2(whole: bytes) -> Told:
    command, family, _ = _HEAD.unpack_from(whole, len(SIGNATURE))
    body = whole[len(SIGNATURE) + _HEAD.size :]
    if command == _LOCAL:
        return Told("")
    if family not in _FAMILIES:
        # UNSPEC, Unix and datagrams: the format asks receivers to use the real peer.
        return Told("")
    kind, size = _FAMILIES[family]
    rest = 2 * size + 4
    if len(body) < rest:
        raise MalformedHeader("shorter than its addresses")
    return Told(socket.inet_ntop(kind, body[:size]), _is_secure(body[rest:]))


def _is_secure(tlvs: bytes) -> bool:
    secure, at = False, 0
    while at < len(tlvs):
        if at + 3 > len(tlvs):
            raise MalformedHeader("a TLV is cut off")
        kind, length = struct.unpack_from("!BH", tlvs, at)
        value = tlvs[at + 3 : at + 3 + length]
        if len(value) != length:
            raise MalformedHeader("a TLV is cut off")
        if kind == _TLV_SSL and value:
            secure = bool(value[0] & _CLIENT_SSL)
        at += 3 + length
    return secure

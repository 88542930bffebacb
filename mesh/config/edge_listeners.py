"""The keys of [gateway] about its sockets, and [gateway.tls] and [gateway.acme].

Owns: these keys, their defaults, and the syntax of an address to listen on.
Leaves to others: all other keys of [gateway] (config.settings), contradictions (config.listener_checks), opening
sockets (gateway.listeners).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Struct, field

from mesh.config.edge_protect import EdgeLimits
from mesh.config.secrets import Secret
from mesh.config.values import DURATION_OR_ZERO, FLAG, PATH_OR_NONE, SECRET, TEXT, TEXTS, Kind, choice, whole

ForwardedHeaders = Literal["x-forwarded", "forwarded"]
ClientCertificates = Literal["required", "optional"]
ClientName = Literal["any", "uri", "email", "dns", "cn"]
ClientRoles = Literal["none", "ou", "o"]
TlsVersion = Literal["1.2", "1.3"]

#: The directory of Let's Encrypt; its staging directory is https://acme-staging-v02.api.letsencrypt.org/directory.
LETS_ENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"
#: The beginning of an address that is a path.
UNIX: Final = "unix:"


def _read_listen(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    text = value.strip()
    if text.startswith(UNIX) and len(text) > len(UNIX):
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 1 <= int(port) <= 65535 or (":" in host and not host.startswith("[")):
        raise ValueError
    return f"{host or '0.0.0.0'}:{int(port)}"


def _read_mode(value: Any) -> int:
    # A number in the file would be read as decimal: 660 is not 0o660.
    if not isinstance(value, str) or not value.strip().isdigit():
        raise ValueError('it is not a text of octal digits: write "0660"')
    mode = int(value, 8)
    if not 0o600 <= mode <= 0o777:
        raise ValueError
    return mode


LISTEN: Final = Kind('an address like "127.0.0.1:9090" or "unix:run/admin.sock"', _read_listen)
MODE: Final = Kind('a file mode from "0600" to "0777"', _read_mode, lambda mode: f"{mode:04o}")


class TlsSettings(Struct, frozen=True, kw_only=True):
    """[gateway.tls]: HTTPS on the gateway's own port. See docs/tls.md."""

    certificate: Annotated[Path | None, PATH_OR_NONE, "PEM file: the certificate, then its intermediates"] = None
    key: Annotated[Path | None, PATH_OR_NONE, "PEM file: the private key of `certificate`"] = None
    key_password: Annotated[Secret | None, SECRET, "where the password of encrypted keys is"] = None
    directory: Annotated[
        Path | None,
        PATH_OR_NONE,
        "further certificates, chosen by host name: NAME.crt and NAME.key, or NAME/fullchain.pem and NAME/privkey.pem",
    ] = None
    minimum: Annotated[TlsVersion, choice("1.2", "1.3"), "the lowest version of TLS"] = "1.2"
    client_ca: Annotated[
        Path | None, PATH_OR_NONE, "PEM file: the authorities of client certificates that identify callers"
    ] = None
    client_crl: Annotated[Path | None, PATH_OR_NONE, "PEM file: revoked client certificates, a CRL per authority"] = (
        None
    )
    client_certificates: Annotated[
        ClientCertificates, choice("required", "optional"), "with `client_ca`: whether every client needs a certificate"
    ] = "required"
    client_name: Annotated[
        ClientName,
        choice("any", "uri", "email", "dns", "cn"),
        "the name in a client certificate that is the principal: of its subjectAltNames, or the common name; "
        '"any": the first of these that it has',
    ] = "any"
    client_roles: Annotated[
        ClientRoles, choice("none", "ou", "o"), "the attribute of its subject that gives the caller's roles"
    ] = "none"
    hsts_s: Annotated[
        float, DURATION_OR_ZERO, "Strict-Transport-Security: how long browsers use only HTTPS for this host"
    ] = field(default=0.0, name="hsts")
    redirect_port: Annotated[int, whole(0, 65535), "a port for HTTP that redirects to HTTPS; 0: none"] = 0
    public_port: Annotated[
        int, whole(0, 65535), "the port in redirects, if clients do not reach the gateway on gateway.port; 0: that port"
    ] = 0


class AcmeSettings(Struct, frozen=True, kw_only=True):
    """[gateway.acme]: a certificate from an ACME authority such as Let's Encrypt, by HTTP-01. See docs/tls.md."""

    domains: Annotated[list[str], TEXTS, "the names of the certificate; none: no ACME"] = []
    email: Annotated[str, TEXT, "where the authority may write about the account"] = ""
    directory: Annotated[str, TEXT, "the directory URL of the authority"] = LETS_ENCRYPT
    agree: Annotated[bool, FLAG, "you agree to the terms of service of the authority"] = False
    dir: Annotated[Path | None, PATH_OR_NONE, "account key, certificate and key; `acme` in store.dir when absent"] = (
        None
    )
    ca: Annotated[Path | None, PATH_OR_NONE, "PEM file: who certifies a private authority's own HTTPS"] = None
    eab_key_id: Annotated[str, TEXT, "external account binding: the key id, for authorities that demand one"] = ""
    eab_key: Annotated[Secret | None, SECRET, "external account binding: where the HMAC key (base64url) is"] = None


class ListenerSettings(EdgeLimits, frozen=True, kw_only=True):
    """The keys of [gateway] about sockets, below those about limits: a Struct has one base."""

    unix: Annotated[
        Path | None, PATH_OR_NONE, "listen on this Unix socket instead of host and port, for a proxy on this machine"
    ] = None
    unix_mode: Annotated[int, MODE, "the file mode of Unix sockets; connecting needs write permission"] = 0o660
    proxy_protocol: Annotated[
        bool, FLAG, "connections begin with the PROXY protocol, version 1 or 2; only `proxies` may connect"
    ] = False
    forwarded: Annotated[
        ForwardedHeaders,
        choice("x-forwarded", "forwarded"),
        "the header fields that `proxies` set: X-Forwarded-For, -Proto and -Host, or Forwarded (RFC 7239)",
    ] = "x-forwarded"
    admin: Annotated[str, LISTEN, "an additional address, for /metrics, /mesh, /docs and other pages for operators"] = (
        ""
    )
    public: Annotated[
        list[str], TEXTS, 'pages for operators that are public on a network address, such as "/docs"; "*": all'
    ] = []
    tls: TlsSettings = field(default_factory=TlsSettings)
    acme: AcmeSettings = field(default_factory=AcmeSettings)

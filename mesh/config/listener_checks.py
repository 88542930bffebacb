"""Cross-checks of the keys about listeners.

Owns: these rules. Leaves to others: all other rules (config.cross_checks), files that do not exist (gateway, doctor).
"""

from __future__ import annotations

from collections.abc import Iterator

from mesh.config.exposure import EVERY, OPERATORS
from mesh.config.settings import GatewaySettings

#: Keys that may be wrong, the key that the error names, what is wrong.
Found = tuple[tuple[str, ...], str, str]


def contradictions(gateway: GatewaySettings) -> Iterator[Found]:
    """The contradictions in the keys about listeners."""
    tls, acme = gateway.tls, gateway.acme
    for page in gateway.public:
        if page != EVERY and page not in OPERATORS:
            yield _one("gateway.public", f'"{page}" is not one of {", ".join(OPERATORS)} or "*"; write "/docs"')
    if (tls.certificate is None) != (tls.key is None):
        wrong, lacking = ("certificate", "key") if tls.key is None else ("key", "certificate")
        yield _one(f"gateway.tls.{wrong}", f"gateway.tls.{lacking} is missing: both files are needed")
    if acme.domains:
        if not acme.agree:
            what = "set agree = true once you have read the terms of service of the authority"
            yield ("gateway.acme.agree", "gateway.acme.domains"), "gateway.acme.agree", what
        if tls.certificate is not None:
            what = "gateway.tls.certificate is set; use one of the two (gateway.tls.directory may hold further ones)"
            yield _one("gateway.acme.domains", what)
        for name in acme.domains:
            if "*" in name or ":" in name or "/" in name or "." not in name.strip("."):
                yield _one("gateway.acme.domains", f'"{name}" is not a full host name; HTTP-01 allows no wildcards')
        if bool(acme.eab_key_id) != (acme.eab_key is not None):
            yield ("gateway.acme.eab_key_id", "gateway.acme.eab_key"), "gateway.acme.eab_key_id", "needs eab_key"
    has_tls = is_tls(gateway)
    if tls.client_crl is not None and tls.client_ca is None:
        yield _one("gateway.tls.client_crl", "gateway.tls.client_ca is missing: the authorities of the certificates")
    for key, value in (("redirect_port", tls.redirect_port), ("hsts", tls.hsts_s), ("client_ca", tls.client_ca)):
        if value and not has_tls:
            what = "it needs TLS: set gateway.tls.certificate, gateway.tls.directory or gateway.acme.domains"
            yield _one(f"gateway.tls.{key}", what)
    if tls.redirect_port and tls.redirect_port == gateway.port and gateway.unix is None:
        yield _one("gateway.tls.redirect_port", "it is gateway.port, where HTTPS is served")
    if gateway.proxy_protocol and not gateway.proxies and gateway.unix is None:
        what = "gateway.proxies is empty: name the proxies, because only they may connect"
        yield _one("gateway.proxy_protocol", what)


def is_tls(gateway: GatewaySettings) -> bool:
    """Whether the public listener speaks TLS."""
    tls = gateway.tls
    return tls.certificate is not None or tls.directory is not None or bool(gateway.acme.domains)


def _one(key: str, what: str) -> Found:
    return (key,), key, what

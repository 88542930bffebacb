"""The gateway's listeners: certificates, and which pages are exposed where.

Owns: these checks, which only read files and settings.
Leaves to others: whether gateways answer (doctor), wrong values (config.load), free ports (machine).
"""

from __future__ import annotations

import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mesh.config import Usable, certificates
from mesh.config.exposure import EVERY, OPERATORS, is_open, withheld
from mesh.config.listener_checks import is_tls
from mesh.doctor.finding import BAD, GOOD, ODD, Finding
from mesh.doctor.values import about
from mesh.errors import ConfigError
from mesh.observe import front_door

#: With fewer days left, a certificate should have been renewed: authorities advise 30 days.
SOON_S: Final = 14 * 86400.0


def listeners(found: Usable) -> Iterator[Finding]:
    """Make all checks."""
    yield from _pages(found)
    if is_tls(found.settings.gateway):
        yield from _certificates(found)


def _pages(found: Usable) -> Iterator[Finding]:
    settings = found.settings
    gateway = settings.gateway
    hidden = withheld(settings)
    where = f"{gateway.host}:{gateway.port}" if gateway.unix is None else str(gateway.unix)
    shown = [page for page in OPERATORS if page not in hidden and page not in settings.auth.mounts]
    admin = front_door.admin(settings)
    if not is_open(gateway):
        if shown and gateway.proxies:
            told = f"a proxy in front of {where} may publish {', '.join(shown)}"
            yield Finding(ODD, about(found, "gateway.proxies"), told, 'set gateway.admin = "127.0.0.1:9090"')
    elif shown:
        told = f"{', '.join(shown)} are public at {where}"
        named = EVERY in gateway.public or set(shown) & {"/metrics", "/mesh"}
        mend = "remove from gateway.public what only operators need, and set gateway.admin"
        yield Finding(ODD if named else GOOD, about(found, "gateway.public"), told, mend if named else "")
    if hidden and admin is None:
        told = f"{', '.join(sorted(hidden))} are not served at {where}, and there is no admin listener"
        yield Finding(ODD, "pages for operators", told, 'set gateway.admin = "127.0.0.1:9090"')
    elif admin is not None:
        yield Finding(GOOD, "pages for operators", f"at {admin.url}")


def _certificates(found: Usable) -> Iterator[Finding]:
    settings = found.settings
    acme = certificates.acme_dir(settings) if settings.gateway.acme.domains else None
    try:
        files = list(certificates.files(settings))
    except ConfigError as exc:
        yield Finding(BAD, about(found, "gateway.tls.directory"), exc.message, "name a directory that can be read")
        return
    if not files:
        yield Finding(BAD, about(found, "gateway.tls.directory"), "it holds no certificate with its key", "add one")
    for each in files:
        if acme is not None and each.certificate.parent == acme and not each.certificate.exists():
            told = f"the authority has not issued {each.certificate} yet; a self-signed certificate is in use"
            yield Finding(ODD, about(found, "gateway.acme.domains"), told, "`mesh logs gateway`")
        else:
            yield _certificate(found, each)


def _certificate(found: Usable, files: certificates.Files) -> Finding:
    title = f"certificate {files.certificate.name}"
    try:
        certificate = certificates.read(files.certificate)
        _check_pair(found, files)
    except ConfigError as exc:
        return Finding(BAD, title, exc.message, "correct the file; running gateways keep the earlier one")
    left_s = certificate.expires_at - time.time()
    names = ", ".join(certificate.names) or "no host name"
    told = f"{names}: expires in {left_s / 86400:.0f} days"
    if left_s <= 0:
        return Finding(BAD, title, f"{names}: has expired", "replace the file")
    if certificate.begins_at > time.time():
        return Finding(BAD, title, f"{names}: is not valid yet", "check the clock of this host")
    if left_s < SOON_S:
        return Finding(ODD, title, told, "renew it: replace the file, and the gateways load it")
    if _is_readable(files.key):
        return Finding(ODD, title, f"its key {files.key} can be read by other users", f"chmod 600 {files.key}")
    return Finding(GOOD, title, told)


def _check_pair(found: Usable, files: certificates.Files) -> None:
    secret = found.settings.gateway.tls.key_password
    try:
        password = "" if secret is None else secret.reveal()
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key, password)
    except (ssl.SSLError, OSError) as exc:
        raise ConfigError(f"{files.key}: is not the key of {files.certificate}, or cannot be read: {exc}") from exc


def _is_readable(path: Path) -> bool:
    # Of a group it may be on purpose: Debian's group ssl-cert.
    return bool(path.stat().st_mode & stat.S_IROTH)

"""TLS on the public listener: contexts, and the certificate for each host name.

Owns: versions, ciphers, ALPN, client certificates, choosing by SNI, loading all files at once.
Leaves to others: when to load again (reload), facts about certificates (config.certificates), ACME (acme).
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

from mesh.config import Settings
from mesh.config import certificates as reading
from mesh.config.certificates import Certificate, Files
from mesh.config.listener_checks import is_tls
from mesh.errors import ConfigError
from mesh.gateway.listeners.temporary import temporary

#: Forward secrecy and authenticated encryption only: Mozilla's "intermediate" list without finite-field DH. TLS 1.3 has
#: ciphers of its own, all of which are acceptable.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

#: What has been read of a file: path, time of modification, size, inode. It changes with the content.
Signature = tuple[tuple[str, int, int, int], ...]


class BadCertificate(ConfigError):
    """A certificate, key or list of authorities cannot be used; the message names the file."""

    code = "bad_certificate"


class Tls:
    """TLS of one gateway.

    Attributes:
        context: for the next connection. `load` replaces it: connections that are open keep theirs.
        certificates: the loaded ones, the default first.

    Raises:
        BadCertificate: as `load`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._root = settings.root
        self.certificates: list[Certificate] = []
        self.context: ssl.SSLContext
        self.load()

    def load(self) -> None:
        """Load all files. When one of them cannot be used, nothing changes.

        Raises:
            BadCertificate: a file cannot be read, a key does not belong to its certificate, or there is no certificate.
        """
        try:
            found = [(self._context(each), reading.read(each.certificate)) for each in self._files()]
        except BadCertificate:
            raise
        except ConfigError as exc:
            raise BadCertificate(exc.message) from exc
        if not found:
            raise BadCertificate(
                f"gateway.tls.directory: {self._settings.gateway.tls.directory} holds no NAME.crt with NAME.key and no "
                "NAME/fullchain.pem with NAME/privkey.pem"
            )
        by_name: dict[str, ssl.SSLContext] = {}
        for context, certificate in found:
            for name in certificate.names:
                by_name.setdefault(name, context)
        default = found[0][0]
        if len(found) > 1:
            default.sni_callback = _chooser(by_name, default)
        self.certificates = [certificate for _, certificate in found]
        self.context = default

    def signature(self) -> Signature:
        """What the files are now, for comparison."""
        tls = self._settings.gateway.tls
        paths: list[Path] = [path for each in self._files(lenient=True) for path in each]
        paths += [self._root / path for path in (tls.client_ca, tls.client_crl) if path is not None]
        found = []
        for path in paths:
            try:
                stat = path.stat()
            except OSError:
                continue
            found.append((str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)

    @property
    def expires_at(self) -> float:
        """When the first of the certificates expires, by the wall clock."""
        return min(certificate.expires_at for certificate in self.certificates)

    def _files(self, *, lenient: bool = False) -> list[Files]:
        try:
            found = list(reading.files(self._settings))
        except ConfigError:
            if lenient:
                return []
            raise
        if self._settings.gateway.acme.domains and not found[0].certificate.exists():
            found[0] = temporary(self._settings)
        return found

    def _context(self, files: Files) -> ssl.SSLContext:
        tls = self._settings.gateway.tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[tls.minimum]
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        _load_pair(context, files, self._password())
        if tls.client_ca is not None:
            optional = tls.client_certificates == "optional"
            context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
            _load_authorities(context, self._root / tls.client_ca, "gateway.tls.client_ca")
            if tls.client_crl is not None:
                _load_authorities(context, self._root / tls.client_crl, "gateway.tls.client_crl")
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context

    def _password(self) -> str:
        # Without a password OpenSSL would ask on the terminal.
        secret = self._settings.gateway.tls.key_password
        return "" if secret is None else secret.reveal()


def tls_of(settings: Settings) -> Tls | None:
    """TLS as mesh.toml declares it; None without it."""
    return Tls(settings) if is_tls(settings.gateway) else None


def _chooser(by_name: dict[str, ssl.SSLContext], default: ssl.SSLContext) -> Any:
    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name is None:
            return
        name = name.lower().removesuffix(".")
        context = by_name.get(name) or by_name.get("*." + name.partition(".")[2], default)
        if context is not default:
            connection.context = context

    return choose


def _load_pair(context: ssl.SSLContext, files: Files, password: str) -> None:
    try:
        context.load_cert_chain(files.certificate, files.key, password)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate(f"{files.key}: is not the key of {files.certificate}") from exc
        raise BadCertificate(
            f"{files.certificate} with {files.key}: not a certificate and its key in PEM format, or the key is "
            f"encrypted and gateway.tls.key_password is missing or wrong ({exc.reason or exc})"
        ) from exc
    except OSError as exc:
        missing = next((each for each in files if not each.exists()), files.certificate)
        raise BadCertificate(f"{missing}: cannot be read: {exc.strerror}") from exc


def _load_authorities(context: ssl.SSLContext, path: Path, key: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as exc:
        raise BadCertificate(f"{key}: {path} cannot be read, or is not in PEM format: {exc}") from exc

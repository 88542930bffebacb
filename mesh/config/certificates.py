"""Reads certificate files: names, dates, fingerprints.

Owns: these facts, for the gateway and `mesh doctor`. Leaves to others: TLS itself (gateway.listeners.tls).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mesh.config.settings import Settings
from mesh.errors import ConfigError

#: The certificate of ACME, its intermediates and its key.
ACME_FILE: Final = "certificate.pem"


class Certificate(NamedTuple):
    """The first certificate of a PEM file.

    Attributes:
        names: the host names that it is for, in lower case; "*.shop.example" for a wildcard.
        begins_at, expires_at: by the wall clock, in seconds.
        serial: in hexadecimal digits.
    """

    path: Path
    names: tuple[str, ...]
    begins_at: float
    expires_at: float
    serial: str


class Files(NamedTuple):
    """A certificate file and the file of its key."""

    certificate: Path
    key: Path


def files(settings: Settings) -> Iterator[Files]:
    """The certificates that mesh.toml names, the default one first. Those of ACME are included, made or not."""
    tls = settings.gateway.tls
    if tls.certificate is not None and tls.key is not None:
        yield Files(settings.root / tls.certificate, settings.root / tls.key)
    if settings.gateway.acme.domains:
        yield Files(acme_dir(settings) / ACME_FILE, acme_dir(settings) / ACME_FILE)
    if tls.directory is not None:
        yield from in_directory(settings.root / tls.directory)


def in_directory(directory: Path) -> Iterator[Files]:
    """NAME.crt with NAME.key, and NAME/fullchain.pem with NAME/privkey.pem, in alphabetical order."""
    try:
        found = sorted(directory.iterdir())
    except OSError as exc:
        raise ConfigError(f"gateway.tls.directory: {directory} cannot be read: {exc.strerror}") from exc
    for each in found:
        if each.suffix == ".crt":
            yield Files(each, each.with_suffix(".key"))
        elif (chain := each / "fullchain.pem").exists():
            yield Files(chain, each / "privkey.pem")


def acme_dir(settings: Settings) -> Path:
    """The directory of ACME: account key, certificate, challenges."""
    return settings.root / (settings.gateway.acme.dir or settings.store.dir / "acme")


def read(path: Path) -> Certificate:
    """The first certificate of a PEM file.

    Raises:
        ConfigError: the file cannot be read or holds no certificate, or the package cryptography is missing.
    """
    try:
        return parse(path.read_bytes(), path)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc


def parse(pem: bytes, path: Path) -> Certificate:
    """The first certificate of a PEM text. Errors as `read`."""
    try:
        from cryptography import x509
    except ImportError:
        raise ConfigError("TLS needs the package cryptography: pip install 'zeromesh[tls]'") from None
    try:
        found = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ConfigError(f"{path}: holds no certificate in PEM format") from None
    try:
        extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(name.lower() for name in extension.get_values_for_type(x509.DNSName))
    except (x509.ExtensionNotFound, ValueError):
        names = ()
    return Certificate(
        path,
        names,
        found.not_valid_before_utc.timestamp(),
        found.not_valid_after_utc.timestamp(),
        f"{found.serial_number:x}",
    )

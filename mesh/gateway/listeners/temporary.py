"""A self-signed certificate for the time before an ACME authority has issued the first one.

Owns: making its files. Leaves to others: replacing it (acme).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from mesh.config import Settings
from mesh.config.certificates import Files, acme_dir
from mesh.errors import ConfigError

#: The gateway can be reached over TLS meanwhile, by clients that do not check.
LIFETIME: Final = timedelta(days=7)


def temporary(settings: Settings) -> Files:
    """The files of the certificate. They are made when they are missing.

    Raises:
        ConfigError: the package cryptography is missing, or the directory cannot be written.
    """
    where = acme_dir(settings)
    file = where / "temporary.pem"
    if not file.exists():
        chain, key = _make(settings.gateway.acme.domains)
        try:
            where.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(file, chain + key)
        except OSError as exc:
            raise ConfigError(f"gateway.acme.dir: {where} cannot be written: {exc.strerror}") from exc
    return Files(file, file)


def write_private(path: Path, content: bytes) -> None:
    """Write a file for this user only (0600), so that readers see either the old content or all of the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _make(domains: list[str]) -> tuple[bytes, bytes]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ConfigError("gateway.acme needs the packages of an extra: pip install 'zeromesh[acme]'") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "temporary certificate of a gateway")])
    begins_at = datetime.now(UTC) - timedelta(minutes=5)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins_at)
        .not_valid_after(begins_at + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in domains]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )

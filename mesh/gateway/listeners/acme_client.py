"""Speaks ACME (RFC 8555) with an authority, through the package `acme`.

Owns: account, order, HTTP-01, finalization; translating the errors of the package.
Leaves to others: when (acme), the files (acme_store), answering the authority (redirect, mounts).

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from mesh import __version__
from mesh.config import Settings
from mesh.errors import ConfigError, Unavailable
from mesh.gateway.listeners.acme_store import AcmeStore
from mesh.gateway.listeners.temporary import write_private

#: How long the authority may take to validate all names and to issue.
ORDER_S: Final = 120.0
#: How long one request to the authority may take.
REQUEST_S: Final = 30


class OrderFailed(Unavailable):
    """The authority did not issue a certificate; the message says why."""

    code = "acme_order_failed"


def obtain(settings: Settings, store: AcmeStore) -> None:
    """Obtain a certificate with a new key, and save both.

    Raises:
        OrderFailed: the authority cannot be reached, or refuses.
        ConfigError: the package acme is missing, or a file cannot be used.
    """
    try:
        import requests
        from acme import client, errors, messages
        from josepy.errors import Error as JoseError
        from josepy.jwa import ES256
    except ImportError:
        raise ConfigError("gateway.acme needs the packages of an extra: pip install 'zeromesh[acme]'") from None
    written: list[Path] = []
    wanted = settings.gateway.acme
    try:
        account = _account_key(store.account_key)
        network = client.ClientNetwork(account, alg=ES256, user_agent=f"mesh/{__version__}", timeout=REQUEST_S)
        if wanted.ca is not None:
            # The package hands it to requests, which takes a path as well.
            network.verify_ssl = str(settings.root / wanted.ca)  # type: ignore[assignment]
        authority = client.ClientV2(client.ClientV2.get_directory(wanted.directory, network), network)
        _register(authority, settings, messages, errors)
        key, request = _request(wanted.domains)
        order = authority.new_order(request)
        for authorization in order.authorizations:
            if authorization.body.status == messages.STATUS_VALID:
                continue
            challenge = _http_01(authorization.body.challenges, authorization.body.identifier.value)
            written.append(store.challenge(challenge.chall.encode("token"), challenge.chall.validation(account)))
            authority.answer_challenge(challenge, challenge.chall.response(account))
        order = authority.poll_and_finalize(order, datetime.now() + timedelta(seconds=ORDER_S))
        store.save(key, order.fullchain_pem.encode())
    except errors.ValidationError as exc:
        raise OrderFailed(f"{wanted.directory}: {_reasons(exc)}") from exc
    except (errors.Error, JoseError, requests.RequestException, messages.Error, ValueError) as exc:
        raise OrderFailed(f"{wanted.directory}: {type(exc).__name__}: {exc}"[:1000]) from exc
    except OSError as exc:
        raise OrderFailed(f"{exc.filename or wanted.directory}: {exc.strerror or exc}") from exc
    finally:
        for path in written:
            path.unlink(missing_ok=True)


def _register(authority: Any, settings: Settings, messages: Any, errors: Any) -> None:
    """Use the account of the key; open one the first time."""
    wanted = settings.gateway.acme
    binding = None
    if wanted.eab_key is not None:
        binding = messages.ExternalAccountBinding.from_data(
            account_public_key=authority.net.key.public_key(),
            kid=wanted.eab_key_id,
            hmac_key=wanted.eab_key.reveal(),
            directory=authority.directory,
        )
    elif authority.external_account_required():
        raise OrderFailed(f"{wanted.directory} demands gateway.acme.eab_key_id and eab_key")
    registration = messages.NewRegistration.from_data(
        email=wanted.email or None, terms_of_service_agreed=wanted.agree, external_account_binding=binding
    )
    try:
        authority.net.account = authority.new_account(registration)
    except errors.ConflictError as exc:
        known = messages.RegistrationResource(uri=exc.location, body=messages.Registration())
        authority.net.account = authority.query_registration(known)


def _http_01(challenges: Any, name: str) -> Any:
    from acme import challenges as kinds

    for each in challenges:
        if isinstance(each.chall, kinds.HTTP01):
            return each
    raise OrderFailed(f"the authority does not offer HTTP-01 for {name}")


def _reasons(exc: Any) -> str:
    found = [
        f"{authorization.body.identifier.value}: {challenge.error.detail or challenge.error}"
        for authorization in exc.failed_authzrs
        for challenge in authorization.body.challenges
        if challenge.error is not None
    ]
    return ("; ".join(found) or "the validation failed")[:1000]


def _account_key(path: Path) -> Any:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from josepy.jwk import JWKEC

    if not path.exists():
        write_private(path, _pem(ec.generate_private_key(ec.SECP256R1())))
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{path}: is not an account key; remove it to open a new account") from exc
    return JWKEC(key=key)


def _request(domains: list[str]) -> tuple[bytes, bytes]:
    """A new key, and a certificate signing request for it."""
    from acme import crypto_util
    from cryptography.hazmat.primitives.asymmetric import ec

    key = _pem(ec.generate_private_key(ec.SECP256R1()))
    return key, crypto_util.make_csr(key, domains)


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    made: bytes = key.private_bytes(encoding, form, serialization.NoEncryption())
    return made

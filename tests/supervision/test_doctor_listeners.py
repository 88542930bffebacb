"""What `mesh doctor` says about the gateway's listeners, and how commands reach them."""

from __future__ import annotations

import asyncio
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.config import load, usable
from mesh.doctor.listeners import listeners
from mesh.gateway.listeners.sockets import bind_unix
from mesh.observe import front_door
from mesh.observe.front_door import Door

TLS = '[gateway.tls]\ncertificate = "site.crt"\nkey = "site.key"\n'


def certificate(root: Path, days: float, mode: int = 0o600) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(end - timedelta(days=90))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("shop.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (root / "site.crt").write_bytes(made.public_bytes(pem))
    (root / "site.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (root / "site.key").chmod(mode)


def findings(root: Path, text: str) -> dict[str, str]:
    (root / "mesh.toml").write_text(text)
    return {each.about.split(": ")[-1]: each.grade for each in listeners(usable(root / "mesh.toml", {}))}


@pytest.mark.parametrize(
    ("days", "mode", "grade"),
    [
        (60, 0o600, "good"),
        (60, 0o640, "good"),
        (60, 0o644, "odd"),
        (5, 0o600, "odd"),
        (-1, 0o600, "bad"),
        (100, 0o600, "bad"),
    ],
)
def test_certificates_are_judged_by_their_dates(tmp_path: Path, days: float, mode: int, grade: str):
    certificate(tmp_path, days, mode)
    assert findings(tmp_path, TLS) == {"certificate site.crt": grade}


def test_certificates_that_cannot_be_used_are_found(tmp_path: Path):
    certificate(tmp_path, 60)
    (tmp_path / "site.key").write_text("nonsense")
    assert findings(tmp_path, TLS) == {"certificate site.crt": "bad"}
    (tmp_path / "site.crt").unlink()
    assert findings(tmp_path, TLS) == {"certificate site.crt": "bad"}
    assert findings(tmp_path, '[gateway.tls]\ndirectory = "none"\n') == {"gateway.tls.directory": "bad"}
    acme = '[gateway.acme]\ndomains = ["a.example"]\nagree = true\n'
    assert findings(tmp_path, acme) == {"gateway.acme.domains": "odd"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ('admin = "127.0.0.1:9090"', {"pages for operators": "good"}),
        ('host = "0.0.0.0"', {"pages for operators": "odd"}),
        ('host = "0.0.0.0"\nadmin = "127.0.0.1:9090"', {"pages for operators": "good"}),
        ('host = "0.0.0.0"\npublic = ["*"]', {"gateway.public": "odd"}),
        (
            'host = "0.0.0.0"\npublic = ["/docs"]\nadmin = "unix:run/a.sock"',
            {"gateway.public": "good", "pages for operators": "good"},
        ),
        ('proxies = ["127.0.0.1"]', {"gateway.proxies": "odd"}),
        ('proxies = ["127.0.0.1"]\nadmin = "127.0.0.1:9090"', {"pages for operators": "good"}),
    ],
)
def test_what_is_exposed_where_is_told(tmp_path: Path, text: str, expected: dict[str, str]):
    assert findings(tmp_path, f"[gateway]\n{text}\n") == expected


@pytest.mark.parametrize(
    ("text", "public", "admin", "metrics"),
    [
        ("", "http://127.0.0.1:8080", None, "http://127.0.0.1:8080/metrics"),
        ('host = "0.0.0.0"', "http://127.0.0.1:8080", None, ""),
        (
            'host = "::"\nadmin = "[::1]:9090"',
            "http://[::1]:8080",
            "http://[::1]:9090",
            "http://[::1]:9090/metrics",
        ),
        ('unix = "run/g.sock"', "unix:{root}/run/g.sock", None, ""),
        (f"port = 8443\n{TLS}", "https://127.0.0.1:8443", None, "https://127.0.0.1:8443/metrics"),
    ],
)
def test_commands_know_the_addresses(tmp_path: Path, text: str, public: str, admin: str | None, metrics: str):
    (tmp_path / "mesh.toml").write_text(f"[gateway]\n{text}\n")
    settings = load(tmp_path / "mesh.toml", {})
    door = front_door.admin(settings)
    assert front_door.public(settings).url == public.format(root=tmp_path)
    assert (door.url if door else None) == admin
    assert front_door.page(settings, "/metrics") == metrics


async def test_the_status_is_asked_over_a_unix_socket_with_a_proxy_header(tmp_path: Path):
    listener = bind_unix(tmp_path / "g.sock", 0o600)
    listener.setblocking(True)
    told: list[bytes] = []

    def answer(sock: socket.socket) -> None:
        connection, _ = sock.accept()
        with connection:
            heard = b""
            # To the end of the request: closing with unread bytes would reset the connection.
            while not heard.endswith(b"\r\n\r\n"):
                heard += connection.recv(1000)
            told.append(heard)
            connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=answer, args=(listener,))
    thread.start()
    status = await asyncio.to_thread(Door(tmp_path / "g.sock", proxied=True).status, "/readyz")
    thread.join()
    listener.close()
    assert status == 503
    assert told[0].startswith(b"PROXY UNKNOWN\r\n")
    assert Door(tmp_path / "g.sock").status("/readyz") == 0

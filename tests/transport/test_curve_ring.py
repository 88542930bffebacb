"""A process's keyring: which key is its own, whom it believes, and how it follows its directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.clock import ManualClock
from mesh.config import KeySettings
from mesh.config.secrets import Secret
from mesh.transport.curve import key_store
from mesh.transport.curve.key_files import BadKeys, read_known, read_secret
from mesh.transport.curve.key_ring import FRESH_S, LOOK_S, Keyring, ring_for


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def ring(keys: Path, name: str = "orders", clock: ManualClock | None = None) -> Keyring:
    return Keyring(keys, read_secret(keys, name), clock=clock or ManualClock())


# --- following ----------------------------------------------------------------------------------------


def test_the_directory_is_looked_at_each_second(keys: Path):
    """Made, rotated, revoked: known a second later, and listeners are told once for each change."""
    key_store.make(keys, "orders")
    clock = ManualClock()
    watched, told = ring(keys, clock=clock), []
    watched.on_change(told.append)
    watched.watch()
    mail = key_store.make(keys, "mail")
    clock.turn(LOOK_S / 2)
    assert watched.name_of(mail.public) is None
    clock.turn(LOOK_S / 2)
    assert watched.name_of(mail.public) == "mail"
    newer = key_store.rotate(keys, "mail")
    clock.turn(LOOK_S)
    assert watched.name_of(mail.public) == watched.name_of(newer.public) == "mail"
    key_store.revoke(keys, "mail", retiring=True)
    clock.turn(LOOK_S)
    assert (watched.name_of(mail.public), watched.name_of(newer.public)) == (None, "mail")
    clock.turn(10 * LOOK_S)
    assert told == [False, False, True]  # whether somebody is not valid any more
    watched.close()
    key_store.revoke(keys, "mail")
    clock.turn(10 * LOOK_S)
    assert watched.name_of(newer.public) == "mail"


def test_a_broken_file_takes_nobodys_key_away(keys: Path, capsys: pytest.CaptureFixture[str]):
    """Half-copied, or the directory is gone: those known before stay, it is said, and the mended state is taken."""
    key_store.make(keys, "orders")
    mail = key_store.make(keys, "mail")
    watched = ring(keys)
    whole = (keys / "mail.public").read_text()
    (keys / "mail.public").write_text(whole[:50])
    watched.reload()
    assert watched.name_of(mail.public) == "mail"
    assert "mail.public" in capsys.readouterr().err
    keys.rename(keys.with_name("gone"))
    watched.reload()
    assert watched.name_of(mail.public) == "mail"
    keys.with_name("gone").rename(keys)
    (keys / "mail.public").unlink()
    watched.reload()
    assert watched.name_of(mail.public) is None


def test_a_broken_file_keeps_no_revoked_key_alive(keys: Path):
    """What is revoked in one file is revoked, whatever is wrong with another."""
    key_store.make(keys, "orders")
    mail, _ = key_store.make(keys, "mail"), key_store.make(keys, "gateway")
    watched = ring(keys)
    key_store.revoke(keys, "mail")
    (keys / "gateway.public").write_text("garbage [")
    watched.reload()
    assert watched.name_of(mail.public) is None


def test_a_process_hears_that_its_own_key_was_revoked(keys: Path, capsys: pytest.CaptureFixture[str]):
    """It cannot do anything about it, and its log should say why nobody talks to it."""
    key_store.make(keys, "orders")
    watched = ring(keys)
    key_store.revoke(keys, "orders")
    watched.reload()
    assert "key.own_invalid" in capsys.readouterr().err


def test_a_stranger_makes_it_look_again_but_not_too_often(keys: Path):
    """Somebody whose file came a moment ago is let in at once; a flood of strangers costs ten looks a second."""
    key_store.make(keys, "orders")
    clock = ManualClock()
    watched = ring(keys, clock=clock)
    mail = key_store.make(keys, "mail")
    assert watched.name_now(mail.public) is None
    clock.turn(FRESH_S)
    assert watched.name_now(mail.public) == "mail"
    gateway = key_store.make(keys, "gateway")
    assert watched.name_now(gateway.public) is None
    clock.turn(FRESH_S)
    watched.look_soon()
    assert watched.name_of(gateway.public) is None
    clock.turn(0.0)
    assert watched.name_of(gateway.public) == "gateway"


# --- whose key ----------------------------------------------------------------------------------------


def test_a_process_whose_own_key_is_not_valid_does_not_start(keys: Path):
    """Everybody else would refuse it."""
    old = key_store.make(keys, "orders")
    key_store.revoke(keys, "orders")
    with pytest.raises(BadKeys, match="'orders'"):
        Keyring(keys, old)
    stranger = key_store.make(keys.with_name("other"), "orders")
    key_store.make(keys, "orders")
    with pytest.raises(BadKeys, match="'orders'"):
        Keyring(keys, stranger)


@pytest.mark.parametrize(
    ("made", "settings", "expected"),
    [
        (["orders", "mail"], {}, "orders"),
        (["orders", "orders@host-1", "orders@host-2"], {}, "orders@host-1"),
        (["everybody", "orders"], {"name": "everybody"}, "everybody"),
    ],
)
def test_a_process_has_the_key_of_its_role(keys: Path, made: list[str], settings: dict[str, str], expected: str):
    """The configured one, or that of its role on this host, or that of its role."""
    for name in made:
        key_store.make(keys, name)
    found = ring_for(KeySettings(dir=keys, **settings), "orders", "host-1")
    assert found is not None
    assert found.own.name == expected


def test_without_a_directory_there_are_no_keys():
    """The default: everything on one host."""
    assert ring_for(KeySettings(), "orders", "host-1") is None


def test_a_secret_may_stand_elsewhere(keys: Path, monkeypatch: pytest.MonkeyPatch):
    """In the environment, put there by whatever keeps secrets; the public files say whose it is."""
    key_store.make(keys, "orders")
    made = key_store.make(keys, "orders@host-1")
    (keys / "orders@host-1.secret").unlink()
    monkeypatch.setenv("ORDERS_KEY", made.secret.hex())
    settings = KeySettings(dir=keys, secret=Secret("env:ORDERS_KEY"))
    found = ring_for(settings, "orders", "host-1")
    assert found is not None
    assert found.own == made
    monkeypatch.setenv("ORDERS_KEY", "hunter2")
    with pytest.raises(BadKeys) as caught:
        ring_for(settings, "orders", "host-1")
    assert "keys.secret" in caught.value.message
    monkeypatch.delenv("ORDERS_KEY")
    with pytest.raises(BadKeys, match="ORDERS_KEY"):
        ring_for(settings, "orders", "host-1")


# --- hubs ---------------------------------------------------------------------------------------------


def test_the_keys_of_a_hub_are_tried_likeliest_first(keys: Path):
    """Configured endpoints name no key: the last that answered there, its host's, the newest, then the others."""
    for name in ("orders", "hub@10.0.0.1", "hub@10.0.0.2", "hub"):
        key_store.make(keys, name)
    key_store.rotate(keys, "hub@10.0.0.2")
    watched = ring(keys)

    def order() -> list[str]:
        found = watched.hubs("tcp://10.0.0.2:7000", "10.0.0.2")
        return [f"{key.name}{' old' if key.retiring else ''}" for key in found]

    assert order()[:2] == ["hub@10.0.0.2", "hub@10.0.0.2 old"]
    assert sorted(order()[2:]) == ["hub", "hub@10.0.0.1"]
    plain = next(key for key in read_known(keys).valid.values() if key.name == "hub")
    watched.answered("tcp://10.0.0.2:7000", plain.public)
    assert order()[0] == "hub"
    assert "orders" not in order()

"""Directories of keys: who may read what, what a crash leaves, and which files are refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.transport.curve import key_store
from mesh.transport.curve.key_files import BadKeys, public_of, read_known, read_public, read_secret, shown


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A user whose new files everybody may read and write."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- making -------------------------------------------------------------------------------------------


def test_files_are_private_whatever_the_umask(keys: Path, open_umask: None):
    """The directory 0700, each file 0600, and nothing else is left there."""
    key_store.make(keys, "orders")
    key_store.rotate(keys, "orders")
    key_store.revoke(keys, "orders", retiring=True)
    assert mode(keys) == 0o700
    assert sorted(path.name for path in keys.iterdir()) == ["orders.public", "orders.secret", "revoked.keys"]
    assert {mode(path) for path in keys.iterdir()} == {0o600}


def test_a_secret_is_private_from_its_first_byte(keys: Path, open_umask: None, monkeypatch: pytest.MonkeyPatch):
    """Not made for all and closed afterwards: it never is in a file that others could have opened."""
    modes: list[int] = []
    really = os.replace

    def replace(source: Path, target: Path) -> None:
        modes.append(mode(Path(source)))
        really(source, target)

    opened: list[int] = []
    really_open = os.open

    def open_(path: str, flags: int, *rest: int) -> int:
        fd = really_open(path, flags, *rest)
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL
            opened.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return fd

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "open", open_)
    key_store.make(keys, "orders")
    assert modes == opened == [0o600, 0o600]


def test_a_key_is_what_it_says(keys: Path):
    """The public half is that of the secret one, and both come back as they were made."""
    made = key_store.make(keys, "orders@host-1")
    assert read_secret(keys, "orders@host-1") == made
    assert public_of(made.secret) == made.public
    assert [key.public for key in read_public(keys, "orders@host-1")] == [made.public]
    assert repr(made).count("secret") == 0


@pytest.mark.parametrize("name", ["", "../orders", "a/b", ".hidden", "a b", "a@", "@b", "a@b@c", "ü", "x" * 65, "a\n"])
def test_a_name_is_a_word(keys: Path, name: str):
    """It becomes a file's name, and stands in logs and rules."""
    with pytest.raises(BadKeys, match="name"):
        key_store.make(keys, name)


def test_a_name_has_one_key(keys: Path):
    """`make` never replaces one: that would cut off whoever holds it."""
    made = key_store.make(keys, "orders")
    with pytest.raises(BadKeys, match="mesh keys rotate orders"):
        key_store.make(keys, "orders")
    assert read_secret(keys, "orders") == made


def test_what_was_begun_is_finished(keys: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed between the two files, `make` may be asked again, and gives the key that it had begun."""
    monkeypatch.setattr(key_store, "_write_public", dies)
    with pytest.raises(KeyboardInterrupt):
        key_store.make(keys, "orders")
    monkeypatch.undo()
    begun = read_secret(keys, "orders")
    assert key_store.make(keys, "orders") == begun
    assert read_known(keys).valid[begun.public].name == "orders"


def dies(*_args: object) -> None:
    raise KeyboardInterrupt


# --- rotating -----------------------------------------------------------------------------------------


def test_both_keys_are_valid_while_one_is_retiring(keys: Path):
    """The secret file has the new one; others believe either."""
    old = key_store.make(keys, "orders")
    new = key_store.rotate(keys, "orders")
    assert read_secret(keys, "orders") == new != old
    assert [(key.public, key.retiring) for key in read_public(keys, "orders")] == [
        (new.public, False),
        (old.public, True),
    ]
    assert set(read_known(keys).valid) == {old.public, new.public}


def test_a_third_key_has_to_wait(keys: Path):
    """Two are enough for everybody to follow; a third would hide that somebody has not."""
    key_store.make(keys, "orders")
    key_store.rotate(keys, "orders")
    with pytest.raises(BadKeys, match="mesh keys revoke orders --retiring"):
        key_store.rotate(keys, "orders")
    key_store.revoke(keys, "orders", retiring=True)
    key_store.rotate(keys, "orders")


@pytest.mark.parametrize("dying", ["_write_public", "_recover"])
def test_a_rotation_that_breaks_off_leaves_a_key_that_works(keys: Path, monkeypatch: pytest.MonkeyPatch, dying: str):
    """At each point either the old key is still the one, or the new one is known and takes its place next time."""
    key_store.make(keys, "orders")
    calls = {"_recover": 0, "_write_public": 1}[dying]
    really = getattr(key_store, dying)

    def at_the_second(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        really(*args)

    monkeypatch.setattr(key_store, dying, at_the_second)
    with pytest.raises(KeyboardInterrupt):
        key_store.rotate(keys, "orders")
    monkeypatch.undo()
    valid = read_known(keys).valid
    assert read_secret(keys, "orders").public in valid  # whoever starts now is believed
    if len(valid) == 1:
        key_store.rotate(keys, "orders")
    else:
        key_store.revoke(keys, "orders", retiring=True)
    assert read_secret(keys, "orders").public in read_known(keys).valid
    assert not list(keys.glob("*.next"))


def test_rotating_what_is_not_there(keys: Path):
    """A typing mistake makes no key."""
    key_store.make(keys, "orders")
    with pytest.raises(BadKeys, match="mesh keys make odrers"):
        key_store.rotate(keys, "odrers")
    assert not list(keys.glob("odrers*"))


# --- revoking -----------------------------------------------------------------------------------------


def test_a_revoked_key_is_nobody_even_where_it_is_listed(keys: Path):
    """revoked.keys wins: a public file that is copied back from another host brings nothing back."""
    made = key_store.make(keys, "orders")
    stale = (keys / "orders.public").read_text()
    assert [key.name for key in key_store.revoke(keys, "orders")] == ["orders"]
    assert not (keys / "orders.secret").exists()
    (keys / "orders.public").write_text(stale)
    (keys / "orders.public").chmod(0o600)
    known = read_known(keys)
    assert made.public not in known.valid
    assert known.revoked[made.public].name == "orders"


def test_a_key_may_be_revoked_by_its_digits(keys: Path):
    """Of one that leaked, nothing but the log's digits may be known."""
    first, second = key_store.make(keys, "orders"), key_store.make(keys, "mail")
    assert [key.name for key in key_store.revoke(keys, shown(second.public))] == ["mail"]
    assert set(read_known(keys).valid) == {first.public}


def test_after_a_revocation_the_name_may_have_a_new_key(keys: Path):
    """The name is not burnt, the key is."""
    old = key_store.make(keys, "orders")
    key_store.revoke(keys, "orders")
    new = key_store.make(keys, "orders")
    assert new.public != old.public
    assert set(read_known(keys).valid) == {new.public}


def test_revoking_what_is_not_there(keys: Path):
    """It says who is."""
    key_store.make(keys, "orders")
    with pytest.raises(BadKeys, match=r"'mail'.*\borders\b"):
        key_store.revoke(keys, "mail")
    with pytest.raises(BadKeys, match="'orders'"):
        key_store.revoke(keys, "orders", retiring=True)


def test_what_cannot_be_taken_back_is_done_for_all_names_or_for_none(keys: Path):
    """A typing mistake in the second name revokes nothing of the first; names that are all known end together."""
    first, second = key_store.make(keys, "orders"), key_store.make(keys, "mail")
    with pytest.raises(BadKeys, match="'clinet'"):
        key_store.revoke(keys, "orders", "clinet")
    assert set(read_known(keys).valid) == {first.public, second.public}
    assert (keys / "orders.secret").exists()
    assert not (keys / "revoked.keys").exists()
    ended = key_store.revoke(keys, "orders", shown(second.public), "orders")
    assert [key.name for key in ended] == ["orders", "mail"]
    assert not read_known(keys).valid


def test_making_and_rotating_look_at_every_name_first(keys: Path):
    """What the second name does not allow does not leave the first one changed."""
    made = key_store.make(keys, "orders")
    for each, names in ((key_store.make_each, ["mail", "orders"]), (key_store.rotate_each, ["orders", "mail"])):
        with pytest.raises(BadKeys):
            list(each(keys, names))
    assert set(read_known(keys).valid) == {made.public}
    assert sorted(path.name for path in keys.iterdir()) == ["orders.public", "orders.secret"]


def test_a_secret_that_has_leaked_into_an_unusable_file_is_revoked_all_the_same(keys: Path):
    """Readable by others is why one revokes: that must not stop it half-way, after revoked.keys was written."""
    made = key_store.make(keys, "orders")
    (keys / "orders.secret").chmod(0o644)
    assert [key.public for key in key_store.revoke(keys, "orders")] == [made.public]
    assert [path.name for path in keys.iterdir()] == ["revoked.keys"]


# --- files that are refused ---------------------------------------------------------------------------


def test_a_secret_that_others_may_read_is_refused(keys: Path):
    """It may have leaked already: the message says both what to do now and what to do about that."""
    key_store.make(keys, "orders")
    (keys / "orders.secret").chmod(0o640)
    with pytest.raises(BadKeys, match=r"mode 0640.*chmod 600.*mesh keys rotate orders"):
        read_secret(keys, "orders")


def test_a_directory_that_others_may_write_is_refused(keys: Path):
    """Whoever can put a public key there is anybody they like."""
    key_store.make(keys, "orders")
    keys.chmod(0o770)
    for read in (read_known, lambda where: read_secret(where, "orders"), lambda where: key_store.make(where, "x")):
        with pytest.raises(BadKeys, match=r"0770.*chmod 700"):
            read(keys)


def test_a_public_file_that_others_may_write_is_refused(keys: Path):
    """The same, for one name."""
    key_store.make(keys, "orders")
    (keys / "orders.public").chmod(0o666)
    with pytest.raises(BadKeys, match="chmod 600"):
        read_known(keys)


def test_links_to_files_elsewhere_are_refused(keys: Path, tmp_path: Path):
    """What a link leads to has not been looked at."""
    key_store.make(keys, "orders")
    (keys / "orders.secret").rename(tmp_path / "elsewhere")
    (keys / "orders.secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadKeys, match=r"orders\.secret"):
        read_secret(keys, "orders")


@pytest.mark.parametrize("made", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_at_once(keys: Path, made: Callable[[Path], None]):
    """A pipe that nobody writes into would be waited for for ever."""
    key_store.make(keys, "orders")
    (keys / "orders.secret").unlink()
    made(keys / "orders.secret")
    with pytest.raises(BadKeys, match=r"orders\.secret"):
        read_secret(keys, "orders")


@pytest.mark.parametrize(
    "text",
    ["", "not toml [", "[[key]]\n", '[[key]]\npublic = "12"\n', "key = 3\n", "[[key]]\npublic = 7\n", "\xff" * 9],
)
def test_a_damaged_file_is_named_and_nothing_of_it_repeated(keys: Path, text: str):
    """Whatever is in it may be half a secret."""
    key_store.make(keys, "orders")
    for name in ("orders.public", "orders.secret"):
        (keys / name).write_text(text, encoding="latin-1")
    for read in (read_known, lambda where: read_secret(where, "orders")):
        with pytest.raises(BadKeys, match=str(keys / "orders")):
            read(keys)


def test_two_names_for_one_key_are_refused(keys: Path):
    """A peer would be one or the other by chance."""
    key_store.make(keys, "orders")
    (keys / "mail.public").write_text((keys / "orders.public").read_text())
    (keys / "mail.public").chmod(0o600)
    with pytest.raises(BadKeys, match=r"'orders'|'mail'"):
        read_known(keys)


def test_a_missing_secret_says_which_are_there(keys: Path):
    """And how to make it."""
    key_store.make(keys, "orders")
    with pytest.raises(BadKeys, match=r"'gateway'.*orders.*mesh keys make gateway.*keys\.name"):
        read_secret(keys, "gateway")
    with pytest.raises(BadKeys, match="mesh keys make"):
        read_known(keys / "nowhere")

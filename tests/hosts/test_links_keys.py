"""Keys between hosts: who is not let in is told why, by name and at once, on both sides."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.transport.curve import key_store

from .host_network import Network
from .links_set import Site, until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(180)]

#: How long until a client on a knows why the hub on b does not let it in, and the reason.
ASK = """
began = time.monotonic()
while not (why := n.agent.hubs_status()[1].reason): await asyncio.sleep(0.005)
print(time.monotonic() - began)
print(why)
"""


@pytest.fixture(scope="module")
def site(network: Network) -> Iterator[Site]:
    """A hub and `lonely` on b; a is where strangers come from."""
    site = Site(network, "ab")
    try:
        site.start("b", "hub")
        site.start("b", "run", "links_services:Lonely")
        site.until_known({"lonely": 1})
        yield site
    finally:
        site.close()


def stranger(site: Site, name: str) -> Path:
    """A directory beside a's own, with a mesh.toml and keys that start as the right ones."""
    place = site.hosts["a"].root / "srv/mesh"
    (place / f"{name}.toml").write_text((place / "mesh.toml").read_text().replace('"keys"', f'"{name}"'))
    (place / name).mkdir(mode=0o700)
    for file in (place / "keys").iterdir():
        (place / name / file.name).write_bytes(file.read_bytes())
        (place / name / file.name).chmod(0o600)
    return place / name


def told(site: Site, name: str) -> str:
    """What the stranger is told, within a second, or three on a machine that has more to do."""
    options = f"path=__import__('pathlib').Path('{name}.toml'), wait_s=0"
    took_s, why = site.python("a", ASK, options).splitlines()
    assert float(took_s) < 3.0
    return why


def test_a_key_that_is_not_listed_is_named_on_both_sides(site: Site):
    """Made on a, and never copied to b."""
    keys = stranger(site, "unlisted")
    for file in keys.glob("client.*"):
        file.unlink()
    key_store.make(keys, "client")
    assert "it refuses this process's key 'client'" in told(site, "unlisted")
    until(lambda: "is not in any file of /srv/mesh/keys" in site.log("b"), "b says it too", 5.0)


def test_a_key_that_is_not_the_expected_one_is_named_on_both_sides(site: Site):
    """a's copy of the hub's public key is of another key."""
    keys = stranger(site, "wrong")
    for file in keys.glob("hub.*"):
        file.unlink()
    key_store.make(keys, "hub")
    why = told(site, "wrong")
    assert "'hub'" in why
    assert "not the expected key of" in why
    until(lambda: "a peer expects another key than 'hub'" in site.log("b"), "b says it too", 5.0)


def test_no_key_is_named_on_both_sides(site: Site):
    """As when keys.dir was forgotten."""
    place = site.hosts["a"].root / "srv/mesh"
    (place / "none.toml").write_text((place / "mesh.toml").read_text().partition("[keys]")[0])
    assert "this process has none: set keys.dir" in told(site, "none")
    # The second when a, which has found out first, hung up before b had read as far.
    words = ("a peer has no key", "a peer ended the handshake: it has no key")
    until(lambda: any(each in site.log("b") for each in words), "b says it too", 5.0)


def test_a_revoked_key_loses_its_live_connections(site: Site):
    """Calls of a's client are answered until its key is revoked on b; then none is."""
    load = site.load("a", ["lonely.where"], deadline_s=1.0)
    revoked_at = time.monotonic()
    site.run("b", "keys", "revoke", "client")
    until(lambda: "link.key_invalid" in site.log("b"), "b cut the link", 3.0)
    time.sleep(1.5)
    answers = load.end()
    assert [one for one in answers if not one.code and one.ended_at < revoked_at]
    assert not [one for one in answers if not one.code and one.began_at > revoked_at + 3.0]
    assert answers[-1].code, json.dumps(answers[-1])

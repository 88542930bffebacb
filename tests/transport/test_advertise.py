"""What other hosts are told of a socket, and when they could do nothing with it."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest

from mesh.config import load
from mesh.errors import BadEndpoint, ConfigError
from mesh.transport import advertise
from mesh.transport.advertise import Unadvertised, advertised, is_own, unreachable
from mesh.transport.curve import key_store
from mesh.transport.endpoints import parse
from mesh.transport.zmq_transport import from_settings

HUBS = ["tcp://198.18.7.1:7000", "tcp://198.18.7.2:7000"]


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Destination -> the own address on the way there; none as long as it is empty."""
    ways: dict[str, str] = {}
    monkeypatch.setattr(advertise, "_on_the_way", lambda host, family: ways.get(host))
    return ways


@pytest.mark.parametrize("bound", ["tcp://198.18.7.9:41000", "tcp://127.0.0.1:41000", "ipc:///run/mesh/w.sock"])
def test_one_address_is_told_as_it_is(bound: str, routes: dict[str, str]):
    """There is nothing to choose."""
    assert advertised(bound, "", HUBS) == bound


@pytest.mark.parametrize("bound", ["tcp://0.0.0.0:41000", "tcp://[::]:41000"])
def test_of_all_addresses_the_one_towards_the_hubs_is_told(bound: str, routes: dict[str, str]):
    """The first hub that a way leads to decides; one of this host itself tells as much as another."""
    routes["198.18.7.2"] = "198.18.7.9"
    assert advertised(bound, "", HUBS) == "tcp://198.18.7.9:41000"
    routes["198.18.7.1"] = "198.18.7.1"
    assert advertised(bound, "", HUBS) == "tcp://198.18.7.1:41000"


def test_an_ipv6_address_is_put_into_brackets(routes: dict[str, str]):
    """As endpoints write it."""
    routes["fd00::1"] = "fd00::9"
    assert advertised("tcp://[::]:41000", "", ["tcp://[fd00::1]:7000"]) == "tcp://[fd00::9]:41000"


def test_what_the_configuration_names_wins(routes: dict[str, str]):
    """Over what was bound, too: behind a translation of addresses others reach another one."""
    assert advertised("tcp://0.0.0.0:41000", "web-1.example", HUBS) == "tcp://web-1.example:41000"
    assert advertised("tcp://198.18.7.9:41000", "203.0.113.5", HUBS) == "tcp://203.0.113.5:41000"
    assert advertised("ipc:///run/mesh/w.sock", "203.0.113.5", HUBS) == "ipc:///run/mesh/w.sock"


@pytest.mark.parametrize("hubs", [[], ["ipc:///run/mesh/hub.sock"], ["tcp://127.0.0.1:7000"]])
def test_without_hubs_elsewhere_this_host_is_all_there_is(hubs: list[str], routes: dict[str, str]):
    """Its loopback address is known to everybody on it."""
    assert advertised("tcp://0.0.0.0:41000", "", hubs) == "tcp://127.0.0.1:41000"
    assert advertised("tcp://[::]:41000", "", hubs) == "tcp://[::1]:41000"


def test_without_a_way_to_any_hub_it_says_what_to_set(routes: dict[str, str]):
    """Better than to tell all others an address that is wrong."""
    with pytest.raises(Unadvertised, match=r"0\.0\.0\.0:41000.*198\.18\.7\.1:7000.*set mesh\.advertise"):
        advertised("tcp://0.0.0.0:41000", "", HUBS)


def test_the_kernel_tells_the_address_without_a_packet():
    """The way to oneself is there on every machine."""
    assert advertise._on_the_way("127.0.0.1", socket.AF_INET) == "127.0.0.1"
    assert advertise._on_the_way("no-such-host.invalid", socket.AF_INET) is None


def test_own_addresses_are_known():
    """By binding, which asks nobody."""
    assert is_own("127.0.0.1")
    assert not is_own("198.18.7.1")


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("ipc:///run/mesh/w.sock", "mesh.bind"),
        ("tcp://127.0.0.1:41000?key=" + "ab" * 32, "127.0.0.1.*mesh.bind"),
        ("tcp://198.18.7.9:41000", ""),
        ("mem://w", ""),
    ],
)
def test_what_other_hosts_cannot_use_is_said(endpoint: str, says: str):
    """When there are other hosts: some hub is not this one's."""
    found = unreachable(endpoint, HUBS)
    assert bool(found) == bool(says)
    assert re.search(says, found)
    assert unreachable(endpoint, ["tcp://127.0.0.1:7000", "ipc:///run/mesh/hub.sock"]) == ""


async def test_a_transport_tells_the_address_and_listens_on_all(tmp_path: Path):
    """Of links and of events alike, and a peer that follows it arrives."""
    text = '[mesh]\nbind = "tcp://0.0.0.0:*"\nadvertise = "127.0.0.1"\n[keys]\ndir = "keys"\n'
    (tmp_path / "mesh.toml").write_text(text)
    for name in ("orders", "hub"):
        key_store.make(tmp_path / "keys", name)
    transport = from_settings(load(tmp_path / "mesh.toml", env={}), "orders")
    try:
        subscriber = transport.subscriber(transport.endpoint("x"), lambda topic, frame: None)
        assert parse(subscriber.endpoint).address == "127.0.0.1"
        publisher = transport.publisher()
        publisher.connect(subscriber.endpoint)
        async with asyncio.timeout(10):
            while not publisher.joined(subscriber.endpoint):  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.005)
    finally:
        await transport.close()


@pytest.mark.parametrize("wrong", ["0.0.0.0", "::", "10.0.0.1:7000", "tcp://10.0.0.1", "a b", "[::1]:1"])
def test_what_is_no_address_is_refused_with_its_line(tmp_path: Path, wrong: str):
    """A wildcard among them: it is what is to be replaced."""
    (tmp_path / "mesh.toml").write_text(f'[mesh]\nadvertise = "{wrong}"\n')
    with pytest.raises(ConfigError, match=r"mesh\.toml:2: mesh\.advertise: "):
        load(tmp_path / "mesh.toml", env={})


@pytest.mark.parametrize(("written", "read"), [("::1", "[::1]"), ("[fd00::1]", "[fd00::1]"), ("10.0.0.1", "10.0.0.1")])
def test_an_address_is_read_as_endpoints_write_it(tmp_path: Path, written: str, read: str):
    """Brackets may be left out."""
    (tmp_path / "mesh.toml").write_text(f'[mesh]\nadvertise = "{written}"\n')
    assert load(tmp_path / "mesh.toml", env={}).mesh.advertise == read


@pytest.mark.parametrize("text", ["tcp://0.0.0.0:7000", "tcp://[::]:7000"])
def test_a_wildcard_among_the_hubs_cannot_be_dialled(text: str):
    """It would be another hub on each host."""
    with pytest.raises(BadEndpoint, match=re.escape(repr(text))):
        parse(text, dialling=True)

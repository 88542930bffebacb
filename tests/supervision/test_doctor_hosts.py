"""What `mesh doctor` says of several hosts: who can reach whom, and how to fix it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mesh.config import Settings, load
from mesh.discovery.record import Instance
from mesh.doctor.hosts import Word, hosts, runs_here
from mesh.errors import Unavailable

KEY = "?key=" + "ab" * 32


class Asked:
    """A node that knows these instances, and reaches those that are not among the silent."""

    def __init__(self, settings: Settings, *table: Instance, silent: tuple[str, ...] = ()) -> None:
        self.settings = settings
        self.table = table
        self._silent = silent

    async def call(self, target: str, /, *, instance: str, timeout: float) -> Any:
        if instance in self._silent:
            raise Unavailable(f"{target}: no instance {instance} within 3 s: connection refused")


def instance(host: str, endpoint: str, service: str = "orders") -> Instance:
    return Instance(service, f"{service}-{host}", 1, host=host, endpoint=endpoint)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "mesh.toml").write_text(
        '[mesh]\nhost = "a"\nhubs = ["tcp://198.18.7.1:7000", "tcp://198.18.7.2:7000"]\n'
    )
    return load(tmp_path / "mesh.toml", env={})


async def test_one_host_alone_has_no_word(settings: Settings):
    """And mere listeners are not asked."""
    assert await hosts(Asked(settings)) == []
    assert await hosts(Asked(settings, instance("a", f"tcp://198.18.7.1:41000{KEY}"), instance("b", ""))) == []


async def test_hosts_that_answer_are_told(settings: Settings):
    """With where they were asked."""
    table = [instance("a", "tcp://198.18.7.1:41000"), instance("b", f"tcp://198.18.7.2:41000{KEY}")]
    assert await hosts(Asked(settings, *table)) == [Word(True, "host b", "1 instance, tcp://198.18.7.2:41000 answers")]


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:41000", "ipc:///srv/mesh/run/orders.sock"])
async def test_an_address_that_others_cannot_use_is_named_on_both_hosts(settings: Settings, endpoint: str):
    """Here with the setting, and for the other host with the host."""
    mine, theirs = await hosts(Asked(settings, instance("a", endpoint), instance("b", endpoint)))
    assert mine.good is False
    assert "orders" in mine.told
    assert "mesh.bind" in mine.mend
    assert theirs.good is False
    assert endpoint in theirs.told
    assert "mesh.bind on b" in theirs.mend


async def test_a_host_that_does_not_answer_says_why(settings: Settings):
    """The reason of the link, and what it may be."""
    node = Asked(settings, instance("b", "tcp://198.18.7.2:41000"), silent=("orders-b",))
    (word,) = await hosts(node)
    assert word.good is False
    assert "tcp://198.18.7.2:41000 (orders)" in word.told
    assert "mesh.advertise" in word.mend


async def test_two_machines_of_one_name_are_noticed(settings: Settings):
    """Clones of one image, for example: each would prefer the other's instances as its own."""
    table = [instance("a", "tcp://198.18.7.1:41000"), instance("a", "tcp://198.18.7.2:41000", "mail")]
    (word,) = await hosts(Asked(settings, *table))
    assert word.good is None
    assert "198.18.7.1, 198.18.7.2" in word.told
    assert "mesh.host" in word.mend


def test_a_hub_of_another_host_is_not_looked_for_in_the_logs_of_this_one():
    """Its address says where it runs."""
    assert runs_here("tcp://127.0.0.1:7000")
    assert runs_here("ipc:///srv/mesh/run/hub.sock")
    assert not runs_here("tcp://198.18.7.2:7000")
    assert not runs_here("nonsense")

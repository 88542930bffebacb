"""An address in the registry is used only when it is on the machine of its worker: no request goes anywhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.discovery.http_address import META, HttpAddress, read, usable
from mesh.discovery.record import Instance

RUN = Path("/srv/shop/run")
IPC = f"ipc://{RUN}/shop-1.sock"
#: An address of documentation (RFC 5737): no machine has it.
REMOTE = "192.0.2.7"


def found(http: str, endpoint: str, host: str = "here") -> str | None:
    instance = Instance("shop", "shop-1", 1, host=host, endpoint=endpoint, meta={META: http})
    address = usable(instance, "here", RUN)
    return address.text if address is not None else None


@pytest.mark.parametrize(
    ("http", "endpoint", "host"),
    [
        ("http://127.0.0.1:4000", IPC, "here"),
        ("http://[::1]:4000", IPC, "here"),
        (f"unix:{RUN}/shop-1.http", IPC, "here"),
        ("http://127.0.0.1:4000", "tcp://127.0.0.1:9000", "here"),
        (f"http://{REMOTE}:4000", f"tcp://{REMOTE}:9000", "there"),
        (f"http://{REMOTE}:4000", f"tcp://{REMOTE}:9000?key={'a' * 64}", "there"),
        ("http://[2001:db8::1]:80", "tcp://[2001:db8::1]:9000", "there"),
    ],
)
def test_addresses_of_the_workers_machine(http: str, endpoint: str, host: str):
    """Loopback and sockets of this machine; elsewhere the address at which the worker itself is connected to."""
    assert found(http, endpoint, host) == http


@pytest.mark.parametrize(
    ("http", "endpoint", "host"),
    [
        # Another machine than that of the worker: the metadata service of a cloud, a neighbour.
        ("http://169.254.169.254:80", IPC, "here"),
        ("http://169.254.169.254:80", f"tcp://{REMOTE}:9000", "there"),
        (f"http://{REMOTE}:4000", "tcp://192.0.2.8:9000", "there"),
        # This machine's loopback, named by a worker of another machine, whatever machine it says it is on.
        ("http://127.0.0.1:6379", f"tcp://{REMOTE}:9000", "there"),
        ("http://127.0.0.1:6379", f"tcp://{REMOTE}:9000", "here"),
        ("http://127.0.0.1:6379", "tcp://somewhere.example:9000", "here"),
        ("http://127.0.0.1:6379", IPC, "there"),
        ("http://127.0.0.1:6379", "ipc:///tmp/evil/shop.sock", "here"),
        ("http://127.0.0.1:6379", "", "here"),
        ("http://127.0.0.1:6379", "nonsense", "here"),
        # Sockets outside of the private directory: docker's, for one.
        ("unix:/var/run/docker.sock", IPC, "here"),
        (f"unix:{RUN}/../docker.sock", IPC, "here"),
        (f"unix:{RUN}/deep/x.sock", IPC, "here"),
        # No literal address.
        ("http://localhost:4000", IPC, "here"),
        ("http://evil.example:80", IPC, "here"),
        ("http://0.0.0.0:4000", IPC, "here"),
        ("http://224.0.0.1:4000", "tcp://224.0.0.1:9000", "there"),
        ("http://2130706433:80", IPC, "here"),
        ("http://127.1:80", IPC, "here"),
        ("http://127.0.0.1:0", IPC, "here"),
        ("http://127.0.0.1:99999", IPC, "here"),
        ("http://127.0.0.1:80/path", IPC, "here"),
        ("http://user@127.0.0.1:80", IPC, "here"),
        ("https://127.0.0.1:80", IPC, "here"),
        ("http://127.0.0.1:80\r\nX: y", IPC, "here"),
        ("http://127.0.0.1:٣", IPC, "here"),
        ("", IPC, "here"),
    ],
)
def test_addresses_that_are_not_used(http: str, endpoint: str, host: str):
    """A worker cannot make a gateway send requests to another process than one of its own machine."""
    assert found(http, endpoint, host) is None


@pytest.mark.parametrize("address", [HttpAddress("127.0.0.1", 80), HttpAddress("::1", 8080), HttpAddress(socket="/x")])
def test_the_form_in_the_registry(address: HttpAddress):
    """What is written is read back."""
    assert read(address.text) == address

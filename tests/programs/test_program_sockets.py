"""What the kernel tells about a port: by both ways the same."""

from __future__ import annotations

import os
import socket

import pytest

from mesh.discovery.http_address import HttpAddress
from mesh.worker import program_sockets
from mesh.worker.program_place import connections, listeners, owned


@pytest.mark.parametrize("look", [program_sockets.tcp, program_sockets._listed])
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")])
def test_listeners_and_connections_of_a_port(look, family: int, host: str):
    """A server on [::] is found, too; closed connections, and those of other ports, do not count."""
    with socket.socket(family) as server, socket.create_server(("127.0.0.1", 0)) as other:
        server.bind((host, 0))
        server.listen()
        port = server.getsockname()[1]
        assert [row.state for row in look(port)] == [program_sockets.LISTEN]
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(other.getsockname()):
            # Not accepted yet, but established.
            assert sorted(row.state for row in look(port)) == [program_sockets.ESTABLISHED, program_sockets.LISTEN]
            accepted, _ = server.accept()
            assert sorted(row.state for row in look(port)) == [program_sockets.ESTABLISHED, program_sockets.LISTEN]
        accepted.close()
        assert [row.state for row in look(port)] == [program_sockets.LISTEN]
        assert {row.inode for row in look(port)} == {os.readlink(f"/proc/self/fd/{server.fileno()}")[8:-1]}


def test_the_owner_of_a_port(tmp_path):
    """This process owns its own sockets, and no other process does."""
    path = str(tmp_path / "s")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)
        unix.listen()
        for address in (HttpAddress("127.0.0.1", server.getsockname()[1]), HttpAddress(socket=path)):
            found = listeners(address)
            assert found
            assert owned(found, [os.getpid()])
            assert not owned(found, [os.getppid(), 1])
            assert connections(address) == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            accepted, _ = unix.accept()
            assert connections(HttpAddress(socket=path)) == 1
            accepted.close()
        assert connections(HttpAddress(socket=path)) == 0
    assert listeners(HttpAddress("127.0.0.1", 1)) == set()

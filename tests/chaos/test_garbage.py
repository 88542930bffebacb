"""Garbage on every socket, and requests that are wrong in every way: a clear error, and everybody else goes on."""

from __future__ import annotations

import json
import os
import random
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

from mesh.protocol.codec import one
from mesh.protocol.messages import CALL, HELLO, VERSION

from .conftest import Set

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]


@contextmanager
def undisturbed(mesh_set: Set) -> Iterator[None]:
    """No process ends, and calls are answered during and after."""
    before = mesh_set.pids()
    assert mesh_set.get("/hello/before") == "Hello, before!"
    yield
    assert mesh_set.get("/hello/after") == "Hello, after!"
    assert mesh_set.pids() == before


def ask(mesh_set: Set, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """The status and the problem document of a request that must fail."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(mesh_set.url + path, data=body, headers=named)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        assert answer.headers["Content-Type"] == "application/problem+json"
        problem: dict[str, Any] = json.load(answer)
        assert problem["status"] == answer.status
        assert problem["detail"]
        return answer.status, problem


def frames_of_garbage() -> list[list[bytes]]:
    rng = random.Random(7)
    hello = one(HELLO, VERSION, "stranger", 1, 1 << 20)
    return [
        [b""],
        [b"\xc1"],
        [b"\xc0" * 50],
        [b"\xdd\xff\xff\xff\xff"],
        [b"\xdf\xff\xff\xff\xff"],
        [b"\x91" * 2000],
        [hello[:-1]],
        [hello, b"unasked"],
        [one(HELLO, 99, "from the future", 1, 1)],
        [one(CALL, 1, "greeting.hello", 1000, b"")],
        [hello, b"", b"", b""],
        [b"x" * 3_000_000],
        *[[rng.randbytes(rng.randrange(1, 400))] for _ in range(200)],
    ]


def test_garbage_frames_on_every_zeromq_socket(mesh_set: Set) -> None:
    """Random and malformed frames to the hub, every worker and every gateway."""
    sockets = sorted((mesh_set.root / "run").glob("*.sock"))
    mine = [path for path in sockets if path.name != "supervisor.sock"]
    assert len(mine) >= 6, mine  # a hub, three greetings, two gateways
    context = zmq.Context()
    try:
        with undisturbed(mesh_set):
            for path in mine:
                for kind in (zmq.DEALER, zmq.REQ, zmq.PUB):
                    with context.socket(kind) as stranger:
                        stranger.linger = 500
                        stranger.connect(f"ipc://{path}")
                        for frames in frames_of_garbage() if kind == zmq.DEALER else [[b"hello?"]]:
                            stranger.send_multipart(frames)
                assert mesh_set.get("/hello/during") == "Hello, during!"
    finally:
        context.destroy(linger=500)


def test_bytes_that_are_no_zeromq_at_all(mesh_set: Set) -> None:
    """Something that does not speak ZMTP connects to every ipc socket."""
    with undisturbed(mesh_set):
        for path in (mesh_set.root / "run").glob("*.sock"):
            if path.name == "supervisor.sock":
                continue
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(path))
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(5000))


def test_garbage_on_the_http_port(mesh_set: Set) -> None:
    """Bytes that are no HTTP get an answer or a closed connection, never a hung process."""
    rng = random.Random(3)
    with undisturbed(mesh_set):
        for payload in [b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", rng.randbytes(5000), b"A" * 100_000]:
            with socket.create_connection(("127.0.0.1", mesh_set.port), timeout=10) as stranger:
                try:
                    stranger.sendall(payload + b"\r\n\r\n")
                    while stranger.recv(65536):
                        pass
                except ConnectionError:
                    pass


def test_wrong_requests_are_told_what_is_wrong(mesh_set: Set) -> None:
    """Wrong JSON, wrong types, unknown names, wrong media, too large: each its status, and where."""
    json_type = {"Content_Type": "application/json"}
    # While a hub learns, an unknown name may yet become known: 503. From then on it is 404.
    mesh_set.wait_until(lambda: mesh_set.get("/mesh")["hubs"][0]["view"] == "learned")
    with undisturbed(mesh_set):
        assert ask(mesh_set, "/rpc/greeting/hello", b"{nope", **json_type)[0] == 400
        status, problem = ask(mesh_set, "/rpc/greeting/hello", b'{"name": 5}', **json_type)
        assert (status, problem["code"]) == (400, "bad_arguments")
        assert problem["details"]["path"] == "body.name"
        status, problem = ask(mesh_set, "/rpc/greeting/hello", b'{"nam": "x"}', **json_type)
        assert status == 400
        assert "did you mean" in problem["detail"]
        assert ask(mesh_set, "/rpc/greeting/helo", b"{}", **json_type)[0] == 404
        assert ask(mesh_set, "/rpc/greting/hello", b"{}", **json_type)[0] == 404
        assert ask(mesh_set, "/nowhere")[0] == 404
        assert ask(mesh_set, "/hello/x", b"{}", **json_type)[0] == 405
        assert ask(mesh_set, "/rpc/greeting/hello", b"<x/>", Content_Type="text/xml")[0] == 415
        assert ask(mesh_set, "/hello/x", X_Request_Timeout="soon")[0] == 400


def test_a_body_of_ten_megabytes(mesh_set: Set) -> None:
    """Within the limit it is read and refused for what it is; above the limit it is 413."""
    with undisturbed(mesh_set):
        big = json.dumps({"name": "x" * 10_000_000}).encode()
        request = urllib.request.Request(
            mesh_set.url + "/rpc/greeting/hello", data=big, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert len(json.load(answer)) == 10_000_000 + len("Hello, !")
        status, problem = ask(mesh_set, "/rpc/greeting/hello", b"x" * 17_000_000, Content_Type="application/json")
        assert (status, problem["code"]) == (413, "too_large")

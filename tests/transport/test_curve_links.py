"""Secure links: who gets in, who learns whose name, and what is said to whoever does not."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import pytest
import zmq
from curve_keys import Yard

from mesh.transport.contract import Refusal
from mesh.transport.curve import key_store
from mesh.transport.curve.key_files import BadKeys, read_known, shown
from mesh.transport.curve.links import Unprotected
from mesh.transport.refusals import Refusals
from mesh.transport.strangers import Strangers, peer_address
from tests.patience import until

ONE_SECOND = 1.0


# --- naked tcp ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["tcp://0.0.0.0:*", "tcp://*:*", "tcp://10.1.2.3:4000", "tcp://eth0:*", "tcp://[::]:*"]
)
async def test_listening_for_other_hosts_without_keys_is_refused(yard: Yard, address: str):
    """The message says what is wrong and both ways to mend it; for links and for events."""
    naked = yard.process(None)
    with pytest.raises(Unprotected, match=r"mesh keys make.*keys\.dir.*ipc"):
        await yard.listen(naked, address)
    with pytest.raises(Unprotected):
        naked.subscriber(address, lambda topic, frame: None)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:*", "tcp://127.1.2.3:*", "tcp://localhost:*", "tcp://lo:*"])
async def test_without_keys_this_host_alone_may_be_listened_to(yard: Yard, address: str):
    """Loopback addresses cannot be reached from elsewhere."""
    await yard.listen(yard.process(None), address)


async def test_with_keys_other_hosts_may_come(yard: Yard):
    """The same bind, once there are keys; the endpoint carries the key, so that callers can expect it."""
    yard.make("orders")
    listener, _ = await yard.listen(yard.process("orders"), "tcp://0.0.0.0:*")
    key = next(iter(read_known(yard.keys).valid)).hex()
    assert listener.endpoint.startswith("tcp://0.0.0.0:")
    assert listener.endpoint.endswith(f"?key={key}")


# --- names --------------------------------------------------------------------------------------------


async def test_each_end_learns_the_proved_name_of_the_other(yard: Yard):
    """Not what a peer says of itself: what its key says."""
    yard.make("orders", "gateway")
    listener, accepted = await yard.listen(yard.process("orders"))
    client = yard.dial(yard.process("gateway"), listener.endpoint)
    await until(lambda: accepted and accepted[0].received, "the hello")
    assert accepted[0].channel.user == "gateway"
    assert accepted[0].channel.peer.startswith("gateway ")
    assert client.channel.user == "orders"


async def test_what_travels_cannot_be_read(yard: Yard):
    """A wire-tap between the two sees neither the message nor its reply; without keys it sees both."""
    yard.make("orders", "gateway")
    seen = {}
    for name, other in (("orders", "gateway"), (None, None)):
        listener, accepted = await yard.listen(yard.process(name))
        tap, heard = await wire_tap(listener.endpoint)
        port = tap.sockets[0].getsockname()[1]
        key = listener.endpoint.partition("?")[2]
        client = yard.dial(
            yard.process(other), f"tcp://127.0.0.1:{port}" + (f"?{key}" if key else ""), b"my secret order"
        )
        await until(lambda a=accepted: a and a[0].received, "the order")
        accepted[0].send(b"my secret answer")
        await until(lambda c=client: c.received, "the answer")
        assert client.received == [b"my secret answer"]
        seen[name] = bytes(heard)
        client.channel.close()
        tap.close()
        await tap.wait_closed()
    assert b"secret order" in seen[None]
    assert b"secret answer" in seen[None]
    assert len(seen["orders"]) > 300
    assert b"secret" not in seen["orders"]


async def wire_tap(endpoint: str) -> tuple[asyncio.Server, bytearray]:
    """A port that leads to the endpoint, and everything that passes through it."""
    port = int(endpoint.partition("?")[0].rpartition(":")[2])
    heard = bytearray()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                heard.extend(data)
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    return await asyncio.start_server(join, "127.0.0.1", 0), heard


# --- strangers ----------------------------------------------------------------------------------------


async def test_an_unlisted_key_is_named_on_both_sides_within_a_second(yard: Yard, tmp_path: Path, capsys):
    """The listener says which key came and where to put it; the dialler, whose key was refused, and why."""
    yard.make("orders")
    theirs = tmp_path / "theirs"
    key_store.make(theirs, "gateway")
    (theirs / "orders.public").write_text((yard.keys / "orders.public").read_text())
    (theirs / "orders.public").chmod(0o600)
    near, far = yard.process("orders"), yard.process("gateway", theirs)
    listener, accepted = await yard.listen(near)
    client = yard.dial(far, listener.endpoint)
    await until(lambda: client.reasons, "told", ONE_SECOND)
    assert "'gateway'" in client.reasons[0]
    assert not accepted
    key = shown(key_store.read_secret(theirs, "gateway").public)
    said = capsys.readouterr().err
    assert "link.refused" in said
    assert str(yard.keys) in said
    assert key in said
    assert client.reasons[0] in said
    assert yard.refused(near) == {"unknown_key": 1}
    assert yard.refused(far) == {"key_refused": 1}


async def test_a_revoked_key_is_told_apart_from_an_unknown_one(yard: Yard, capsys):
    """The listener knows whose it was and since when."""
    yard.make("orders", "gateway")
    late = yard.process("gateway")
    key_store.revoke(yard.keys, "gateway")
    near = yard.process("orders")
    listener, _ = await yard.listen(near)
    client = yard.dial(late, listener.endpoint)
    await until(lambda: client.reasons, "told", ONE_SECOND)
    said = capsys.readouterr().err
    assert "link.refused" in said
    assert "'gateway'" in said
    assert yard.refused(near) == {"revoked_key": 1}


async def test_a_process_without_keys_is_told_so(yard: Yard, capsys):
    """To a listener with keys: its endpoint says that it has one; and where it does not, the handshake does."""
    yard.make("orders")
    near, naked = yard.process("orders"), yard.process(None)
    listener, accepted = await yard.listen(near)
    client = yard.dial(naked, listener.endpoint)
    await until(lambda: client.reasons, "told", ONE_SECOND)
    assert len(client.reasons) == 1
    assert "keys.dir" in client.reasons[0]
    again = yard.dial(naked, listener.endpoint.partition("?")[0])
    await until(lambda: again.reasons, "told", ONE_SECOND)
    # The listener hangs up, sometimes before the dialler has read what it is.
    assert "keys.dir" in again.reasons[0]
    assert "keys.dir" in again.reasons[0]
    await until(lambda: yard.refused(near), "the listener has counted it", ONE_SECOND)
    assert set(yard.refused(near)) <= {"no_key", "hung_up"}
    assert "keys.dir" in capsys.readouterr().err
    assert not accepted


async def test_a_listener_without_keys_is_told_so(yard: Yard, capsys):
    """The other way round."""
    yard.make("hub", "orders")
    naked, keyed = yard.process(None), yard.process("orders")
    listener, accepted = await yard.listen(naked)
    client = yard.dial(keyed, listener.endpoint)
    await until(lambda: client.reasons, "told", ONE_SECOND)
    assert "'hub'" in client.reasons[0]
    for _ in range(20):  # it may have hung up before the listener had read as far
        again = yard.dial(keyed, listener.endpoint)
        await until(lambda a=again: a.reasons, "told", ONE_SECOND)
    assert yard.refused(naked).keys() == {"unexpected_key"}
    said = capsys.readouterr().err
    assert "link.refused" in said
    assert "keys.dir" in said
    assert not accepted


async def test_a_listener_that_holds_another_key_is_told_so(yard: Yard, capsys):
    """Somebody else listens where orders is expected: it gets nothing, and both sides say what is wrong."""
    yard.make("orders", "mail", "gateway")
    near, far = yard.process("mail"), yard.process("gateway")
    listener, accepted = await yard.listen(near)
    orders = next(key for key in read_known(yard.keys).valid.values() if key.name == "orders")
    client = yard.dial(far, f"{listener.endpoint.partition('?')[0]}?key={orders.public.hex()}")
    await until(lambda: client.reasons, "told", ONE_SECOND)
    assert "'orders'" in client.reasons[0]
    assert shown(orders.public) in client.reasons[0]
    await until(lambda: yard.refused(near) == {"other_key_expected": 1}, "counted", ONE_SECOND)
    assert "'mail'" in capsys.readouterr().err
    assert yard.refused(far) == {"wrong_key_there": 1}
    assert not accepted


async def test_an_endpoint_with_a_key_that_is_nobodys_gets_no_link(yard: Yard, capsys):
    """A record may name any key: only one that this process believes is talked to. The other end's log says so, too."""
    yard.make("orders", "gateway")
    near = yard.process("orders")
    listener, accepted = await yard.listen(near)
    late = yard.process("gateway")
    ours = key_store.read_secret(yard.keys, "orders").public
    key_store.revoke(yard.keys, "orders")
    yard.reload()
    client = yard.dial(late, listener.endpoint)
    await until(lambda: client.reasons, "told", ONE_SECOND)
    assert shown(ours) in client.reasons[0]
    assert yard.refused(late) == {"no_such_key": 1}
    await until(lambda: yard.refused(near) == {"other_key_expected": 1}, "the listener has noticed", ONE_SECOND)
    assert "'orders'" in capsys.readouterr().err
    assert not accepted


async def test_a_listener_whose_public_key_is_missing_here_is_told(yard: Yard, tmp_path: Path, capsys):
    """Of a caller's link, of a publisher's, and of a hub that has no key here: each end says it by name, within a
    second."""
    yard.make("orders", "hub", "gateway")
    theirs = tmp_path / "theirs"
    key_store.make(theirs, "gateway")
    near, hub, far = yard.process("orders"), yard.process("hub"), yard.process("gateway", theirs)
    listener, accepted = await yard.listen(near)
    inbox = near.subscriber("tcp://127.0.0.1:*", lambda topic, frame: None)
    far.publisher().connect(inbox.endpoint)
    client = yard.dial(far, listener.endpoint)
    await until(lambda: client.reasons, "told", ONE_SECOND)
    assert isinstance(client.reasons[0], Refusal)
    assert str(theirs) in client.reasons[0]
    await until(lambda: yard.refused(near) == {"other_key_expected": 2}, "both were noticed", ONE_SECOND)
    assert yard.refused(far) == {"no_such_key": 2}
    assert "'orders'" in capsys.readouterr().err
    hubs, _ = await yard.listen(hub)
    again = yard.dial(far, hubs.endpoint.partition("?")[0])
    await until(lambda: again.reasons, "told", ONE_SECOND)
    assert "'hub'" in again.reasons[0]
    assert str(theirs) in again.reasons[0]
    await until(lambda: yard.refused(hub) == {"other_key_expected": 1}, "the hub has noticed", ONE_SECOND)
    assert not accepted


async def test_who_is_not_believed_and_has_gone_silent_is_not_waited_for(yard: Yard):
    """It is told that it is not believed as far as it listens; the caller hears of it within a second all the same."""
    yard.make("orders", "gateway")
    stranger = key_store.make(yard.keys.with_name("theirs"), "orders")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        port = mute.getsockname()[1]
        client = yard.dial(yard.process("gateway"), f"tcp://127.0.0.1:{port}?key={stranger.public.hex()}")
        await until(lambda: client.reasons, "told", ONE_SECOND)
    assert isinstance(client.reasons[0], Refusal)
    assert str(yard.keys) in client.reasons[0]


async def test_a_knock_gives_nothing_away(yard: Yard, tmp_path: Path):
    """Who listens with a key that is not believed gets no link, even with a key that is made up: nor is one opened to a
    listener that asks for no key."""
    yard.make("orders", "gateway")
    stranger = key_store.make(tmp_path / "theirs", "orders")
    listener, accepted = await yard.listen(yard.process(None))
    client = yard.dial(yard.process("gateway"), f"{listener.endpoint}?key={stranger.public.hex()}")
    naked = yard.dial(yard.process(None), f"{listener.endpoint}?key={stranger.public.hex()}")
    await until(lambda: client.reasons and naked.reasons, "told", ONE_SECOND)
    assert not client.is_open
    assert not naked.is_open
    assert not accepted


async def test_what_goes_on_is_said_once(yard: Yard, capsys):
    """A stranger that tries each second is counted each time and does not fill the log."""
    yard.make("orders")
    near, naked = yard.process("orders"), yard.process(None)
    listener, _ = await yard.listen(near)
    for _ in range(5):
        client = yard.dial(naked, listener.endpoint.partition("?")[0])
        await until(lambda c=client: c.reasons, "told")
    await until(lambda: sum(yard.refused(near).values()) == 5, "counted")
    said = capsys.readouterr().err
    # Each of the two causes once, or twice when its address was missed the first time.
    assert 1 <= said.count("link.refused") <= 4


async def test_who_was_not_let_in_is_said_with_the_address_it_came_from(yard: Yard, capsys):
    """Each host is said, however many there are."""
    yard.make("orders")
    near = yard.process("orders")
    listener, _ = await yard.listen(near, "tcp://127.0.0.2:*")
    where = listener.endpoint.partition("?")[0]
    port = int(where.rpartition(":")[2])
    for number, host in enumerate(("127.0.0.3", "127.0.0.4"), 1):
        _, scanner = await asyncio.open_connection("127.0.0.2", port, local_addr=(host, 0))
        await until(lambda: listener._guard._behind, "the listener knows of it")
        scanner.close()
        await until(lambda n=number: yard.refused(near).get("hung_up") == n, "counted", ONE_SECOND)
    said = [line for line in capsys.readouterr().err.splitlines() if "link.refused" in line]
    assert [line.partition("peer=")[2].split()[0] for line in said] == ["127.0.0.3", "127.0.0.4"]
    assert all(f"endpoint={where}" in line for line in said)


async def test_an_address_that_may_be_anothers_by_now_is_not_said(yard: Yard):
    """The end of a connection that is known already has given its descriptor's number free: it names nobody."""
    yard.make("orders")
    refusals = Refusals()
    strangers = Strangers(yard.process("orders")._ring, refusals)
    said: list[dict[str, str]] = []
    refusals.note = lambda word, who, text, **fields: said.append({"who": who, **fields})

    class Late:
        def __init__(self, ended: bool) -> None:
            self.has = lambda event, value: ended

    with socket.create_server(("127.0.0.1", 0)) as server:
        at = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with socket.create_connection(server.getsockname(), source_address=("127.0.0.3", 0)):
            connection, _ = server.accept()
            with connection:
                for ended in (False, True):
                    strangers.heard(Late(ended), zmq.EVENT_ACCEPTED, connection.fileno(), at)
                    strangers.heard(Late(ended), zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, 0, at)
                    strangers.heard(Late(ended), zmq.EVENT_DISCONNECTED, connection.fileno(), at)
    who = f"{at} 127.0.0.3"  # and so the second one is no news
    assert said == [{"who": who, "endpoint": at, "peer": "127.0.0.3"}, {"who": who, "endpoint": at}]


async def test_garbage_is_no_matter_of_keys(yard: Yard):
    """A port scanner is not told of in words about keys, and leaves the listener as it was."""
    yard.make("orders", "gateway")
    near = yard.process("orders")
    listener, accepted = await yard.listen(near)
    port = int(listener.endpoint.partition("?")[0].rpartition(":")[2])
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, bytes(200)):
        with socket.create_connection(("127.0.0.1", port)) as scanner:
            scanner.sendall(garbage)
    client = yard.dial(yard.process("gateway"), listener.endpoint)
    await until(lambda: accepted and accepted[0].received, "the hello")
    assert client.is_open
    assert not set(yard.refused(near)) & {"unknown_key", "revoked_key"}


async def test_no_secret_is_in_any_log_line_or_error(yard: Yard, caplog, capsys):
    """Not at any level, not when things go wrong."""
    yard.make("orders", "gateway")
    secrets = [key_store.read_secret(yard.keys, name).secret for name in ("orders", "gateway")]
    with caplog.at_level(logging.DEBUG):
        near, far = yard.process("orders"), yard.process("gateway")
        listener, _ = await yard.listen(near)
        client = yard.dial(far, listener.endpoint)
        await until(lambda: client.is_open, "open")
        key_store.revoke(yard.keys, "gateway")
        yard.reload()
        await until(lambda: client.reasons, "lost")
    texts = [capsys.readouterr().err, caplog.text, *client.reasons, repr(key_store.read_secret(yard.keys, "orders"))]
    with pytest.raises(BadKeys) as caught:
        key_store.read_secret(yard.keys, "gateway")
    for secret in secrets:
        assert all(secret.hex() not in text and repr(secret) not in text for text in [*texts, str(caught.value)])


def test_a_number_that_is_a_files_by_now_is_left_alone(tmp_path: Path):
    """Asked whose connection it is, when it is none any more: nobody's, and no descriptor is left open for it."""
    with (tmp_path / "file").open("w") as file:
        before = sorted(os.listdir("/proc/self/fd"))
        assert peer_address(file.fileno(), "tcp://127.0.0.1:1") == ""
        assert sorted(os.listdir("/proc/self/fd")) == before

"""A revoked key loses what it has: links at either end, events in either direction; and it does not come back."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

import pytest
import zmq
from curve_keys import Note, Yard

from mesh.transport.curve import key_store
from mesh.transport.curve.key_files import read_secret
from tests.patience import until


async def test_the_dialler_of_a_revoked_key_is_cut_off_and_its_neighbour_is_not(yard: Yard):
    """The session ends on both sides; whoever comes again is refused; other links go on."""
    yard.make("orders", "gateway", "mail")
    listener, accepted = await yard.listen(yard.process("orders"))
    gateway = yard.process("gateway")
    client, neighbour = yard.dial(gateway, listener.endpoint), yard.dial(yard.process("mail"), listener.endpoint)
    await until(lambda: len(accepted) == 2 and all(each.received for each in accepted), "both hellos")
    key_store.revoke(yard.keys, "gateway")
    yard._transports[0]._ring.reload()  # the listener's only: the other end has not heard of it
    theirs = next(each for each in accepted if each.channel.user == "gateway")
    assert len(theirs.reasons) == 1
    assert "'gateway'" in theirs.reasons[0]
    await until(lambda: client.reasons, "the dialler is told", 5.0)
    again = yard.dial(gateway, listener.endpoint)
    await until(lambda: again.reasons, "refused", 5.0)
    assert "'gateway'" in again.reasons[0]
    neighbour.send(b"still here")
    other = next(each for each in accepted if each.channel.user == "mail")
    await until(lambda: b"still here" in other.received, "the neighbour's message")
    assert len(accepted) == 2


async def test_the_listener_of_a_revoked_key_is_left(yard: Yard):
    """A caller ends its links to a worker whose key was revoked, by itself."""
    yard.make("orders", "gateway")
    listener, _ = await yard.listen(yard.process("orders"))
    gateway = yard.process("gateway")
    client = yard.dial(gateway, listener.endpoint)
    await until(lambda: client.is_open, "open")
    key_store.revoke(yard.keys, "orders")
    gateway._ring.reload()
    assert len(client.reasons) == 1
    assert "'orders'" in client.reasons[0]


async def test_it_is_noticed_within_seconds_without_anybody_asking(yard: Yard):
    """The directory is looked at each second, in every process."""
    yard.make("orders", "gateway")
    listener, accepted = await yard.listen(yard.process("orders"))
    client = yard.dial(yard.process("gateway"), listener.endpoint)
    await until(lambda: accepted and accepted[0].received, "the hello")
    key_store.revoke(yard.keys, "gateway")
    took = await until(lambda: client.reasons and accepted[0].reasons, "both are told", 8.0)
    assert took < 6.0


class Hostile:
    """A peer that holds a key and keeps to no rules: a bare socket that sends on and on, and connects again."""

    def __init__(self, kind: int, yard: Yard, name: str, endpoint: str) -> None:
        own = read_secret(yard.keys, name)
        where, _, key = endpoint.partition("?key=")
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 0
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public)
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret)
        self.socket.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(key))
        self.socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._monitor = self.socket.get_monitor_socket()
        self._monitor.linger = 0
        self.socket.connect(where)

    def saw(self, event: int) -> bool:
        """Whether libzmq reports this, among what it has reported since the last look."""
        found = False
        while self._monitor.poll(0):
            found |= int.from_bytes(self._monitor.recv_multipart()[0][:2], "little") == event
        return found

    def close(self) -> None:
        self.socket.disable_monitor()
        self._monitor.close()
        self.socket.close()
        self._context.term()


async def test_a_peer_that_goes_on_loses_its_connection(yard: Yard):
    """Not only its session: the connection beneath is shut, nothing more of it is read, and it is not let in again."""
    yard.make("orders", "gateway")
    near = yard.process("orders")
    listener, accepted = await yard.listen(near)
    hostile = Hostile(zmq.DEALER, yard, "gateway", listener.endpoint)
    try:
        hostile.socket.send(b"1")
        await until(lambda: accepted and accepted[0].received == [b"1"], "its first message")
        assert not hostile.saw(zmq.EVENT_DISCONNECTED)
        key_store.revoke(yard.keys, "gateway")
        yard.reload()
        await until(lambda: hostile.saw(zmq.EVENT_DISCONNECTED), "its connection is gone", 5.0)
        for _ in range(20):
            with suppress(zmq.Again):  # it has nobody to send to
                hostile.socket.send(b"again", zmq.NOBLOCK)
            await asyncio.sleep(0.01)
        await until(lambda: yard.refused(near).get("revoked_key", 0) >= 1, "it has tried again")
        assert accepted[0].received == [b"1"]
        assert len(accepted) == 1
    finally:
        hostile.close()


async def test_a_peer_that_has_said_nothing_loses_its_connection_too(yard: Yard):
    """One that only connected, and waits for its moment."""
    yard.make("orders", "gateway")
    near = yard.process("orders")
    listener, accepted = await yard.listen(near)
    hostile = Hostile(zmq.DEALER, yard, "gateway", listener.endpoint)
    try:
        await until(lambda: hostile.saw(zmq.EVENT_HANDSHAKE_SUCCEEDED), "it stands")
        await until(lambda: listener._guard._behind, "the listener knows of it")
        key_store.revoke(yard.keys, "gateway")
        yard.reload()
        await until(lambda: hostile.saw(zmq.EVENT_DISCONNECTED), "its connection is gone", 5.0)
        assert not accepted
    finally:
        hostile.close()


async def test_a_revoked_publisher_is_cut_off_and_others_lose_nothing(yard: Yard):
    """A SUB knows no peers, and still: the revoked one's events end, every event of the other one arrives."""
    yard.make("orders", "gateway", "mail")
    near = yard.process("orders")
    events: list[tuple[str, bytes]] = []
    subscriber = near.subscriber("tcp://127.0.0.1:*", lambda topic, frame: events.append((topic, bytes(frame))))
    subscriber.subscribe("")
    good = yard.process("mail").publisher()
    good.connect(subscriber.endpoint)
    await until(lambda: good.joined(subscriber.endpoint), "mail has joined")
    hostile = Hostile(zmq.PUB, yard, "gateway", subscriber.endpoint)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            hostile.socket.send_multipart([b"bad", b"x"])
            time.sleep(0.001)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        await until(lambda: ("bad", b"x") in events, "the bad ones arrive")
        for number in range(200):
            good.send("good", b"%d" % number)
            if number == 100:
                key_store.revoke(yard.keys, "gateway")
                yard.reload()
                at_revocation = len([each for each in events if each[0] == "bad"])
            await asyncio.sleep(0.001)
        await until(lambda: yard.refused(near).get("revoked_key", 0) >= 1, "it has tried again")
        await until(lambda: ("good", b"199") in events, "the last good one")
        assert [frame for topic, frame in events if topic == "good"] == [b"%d" % number for number in range(200)]
        assert len([each for each in events if each[0] == "bad"]) == at_revocation
    finally:
        stop.set()
        flooding.join()
        hostile.close()


async def test_a_publisher_that_was_silent_is_not_cut_with_another(yard: Yard):
    """It has joined and said nothing yet: its first event, in the moment of the other's revocation, arrives."""
    yard.make("orders", "gateway", "mail", "late")
    events: list[bytes] = []
    near = yard.process("orders")
    subscriber = near.subscriber("tcp://127.0.0.1:*", lambda topic, frame: events.append(bytes(frame)))
    subscriber.subscribe("")
    publisher = yard.process("mail").publisher()
    publisher.connect(subscriber.endpoint)
    await until(lambda: publisher.joined(subscriber.endpoint), "joined")
    await until(lambda: all(subscriber._guard._behind.values()), "the subscriber knows whose the connection is")
    for change in (lambda: key_store.revoke(yard.keys, "gateway"), lambda: key_store.rotate(yard.keys, "late")):
        change()
        yard.reload()
        publisher.send("t", b"%d" % len(events))
        await until(lambda: publisher.joined(subscriber.endpoint), "still joined")
    await until(lambda: len(events) == 2, "both arrive")


async def test_a_new_key_ends_nothing(yard: Yard):
    """Even connections that have said nothing yet stay, when somebody comes."""
    yard.make("orders", "gateway")
    listener, _ = await yard.listen(yard.process("orders"))
    silent = Hostile(zmq.DEALER, yard, "gateway", listener.endpoint)
    try:
        await until(lambda: silent.saw(zmq.EVENT_HANDSHAKE_SUCCEEDED), "it stands")
        await until(lambda: listener._guard._behind, "the listener knows of it")
        key_store.make(yard.keys, "mail")
        key_store.rotate(yard.keys, "gateway")
        yard.reload()
        silent.socket.send(b"hello")
        await until(lambda: any(listener._guard._behind.values()), "it is heard")
        assert not silent.saw(zmq.EVENT_DISCONNECTED)
    finally:
        silent.close()


async def test_a_subscriber_whose_key_was_revoked_hears_nothing_more(yard: Yard):
    """The publisher leaves it; others go on hearing."""
    yard.make("orders", "mail", "gateway")
    heard: dict[str, list[bytes]] = {"orders": [], "mail": []}
    endpoints = {}
    for name, events in heard.items():
        inbox = yard.process(name).subscriber(
            "tcp://127.0.0.1:*", lambda topic, frame, e=events: e.append(bytes(frame))
        )
        inbox.subscribe("")
        endpoints[name] = inbox.endpoint
    gateway = yard.process("gateway")
    publisher = gateway.publisher()
    for endpoint in endpoints.values():
        publisher.connect(endpoint)
    await until(lambda: all(publisher.joined(each) for each in endpoints.values()), "both have joined")
    publisher.send("t", b"1")
    await until(lambda: heard["orders"] == heard["mail"] == [b"1"], "both hear")
    key_store.revoke(yard.keys, "mail")
    gateway._ring.reload()
    await until(lambda: not publisher.joined(endpoints["mail"]), "mail is left")
    for number in range(2, 20):
        publisher.send("t", b"%d" % number)
    await until(lambda: heard["orders"][-1] == b"19", "the other one hears")
    assert heard["mail"] == [b"1"]


async def test_a_subscriber_whose_key_comes_later_is_reached_then(yard: Yard, tmp_path):
    """Discovery may be faster than the copying of key files: the publisher connects when it knows the key."""
    yard.make("orders", "gateway")
    public = yard.keys / "orders.public"
    text = public.read_text()
    events: list[bytes] = []
    inbox = yard.process("orders").subscriber("tcp://127.0.0.1:*", lambda topic, frame: events.append(bytes(frame)))
    inbox.subscribe("")
    public.unlink()
    gateway = yard.process("gateway")
    publisher = gateway.publisher()
    publisher.connect(inbox.endpoint)
    assert yard.refused(gateway) == {"no_such_key": 1}
    public.write_text(text)
    public.chmod(0o600)
    gateway._ring.reload()
    await until(lambda: publisher.joined(inbox.endpoint), "joined")


@pytest.mark.parametrize("retiring", [True, False], ids=["its old key", "all its keys"])
async def test_revoking_one_of_two_keys_cuts_only_the_links_of_that_one(yard: Yard, retiring: bool):
    """After a rotation the old key ends alone, unless both are meant."""
    yard.make("orders", "gateway")
    near = yard.process("orders")
    listener, accepted = await yard.listen(near)
    old = yard.process("gateway")
    key_store.rotate(yard.keys, "gateway")
    yard.reload()
    new = yard.process("gateway")
    links: list[Note] = [yard.dial(old, listener.endpoint), yard.dial(new, listener.endpoint)]
    await until(lambda: len(accepted) == 2 and all(each.received for each in accepted), "both hellos")
    assert [each.channel.user for each in accepted] == ["gateway", "gateway"]
    key_store.revoke(yard.keys, "gateway", retiring=retiring)
    yard.reload()
    await until(lambda: links[0].reasons, "the old one is cut", 5.0)
    if retiring:
        links[1].send(b"still here")
        await until(lambda: any(b"still here" in each.received for each in accepted), "the new one goes on")
    else:
        await until(lambda: links[1].reasons, "the new one is cut as well", 5.0)

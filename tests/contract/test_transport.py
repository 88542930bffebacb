"""The contract of mesh/transport/contract.py, kept by every transport: in memory, over ipc and over tcp."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import resource
import socket
import stat
import struct
from pathlib import Path

import pytest

from mesh.errors import AddressInUse, BadEndpoint, ProtocolViolation

# --- opening -----------------------------------------------------------------------------------------


async def test_both_sides_are_opened_before_they_receive(bench):
    """`opened` comes first on both sides, and what is sent in it arrives."""
    server = await bench.listen(on_opened=lambda s: s.send([b"from the listener"]))
    client = bench.dial(server.endpoint, on_opened=lambda s: s.send([b"from the dialler"]))
    accepted = await server.next()
    assert await client.until_received(1) == [[b"from the listener"]]
    assert await accepted.until_received(1) == [[b"from the dialler"]]
    for session in (client, accepted):
        assert session.calls.index("opened") < session.calls.index("receive")


async def test_dial_returns_before_anything_is_called(bench):
    """A session is never called from inside `dial`, so its owner can finish setting up."""
    server = await bench.listen()
    client = bench.dial(server.endpoint)
    assert client.calls == []
    await client.until_opened()


async def test_what_was_woken_for_before_opened_leaves_after_it(bench):
    """A message that waits when the connection begins to stand is not forgotten."""
    server = await bench.listen()
    client = bench.dial(server.endpoint)
    client.send([b"early"])
    assert await (await server.next()).until_received(1) == [[b"early"]]


async def test_a_channel_names_its_peer(bench):
    """The dialling side knows where the other end listens; the accepting side has a printable name for it."""
    client, accepted = await bench.pair()
    assert client.channel.peer == bench.sessions[0].channel.peer
    assert client.channel.peer.split("://")[0] in ("ipc", "tcp", "mem")
    assert accepted.channel.peer.isprintable()
    assert accepted.channel.peer


async def test_an_absent_endpoint_is_lost_without_having_opened(bench):
    """Dialling where nobody listens ends in `lost`, and nothing else."""
    server = await bench.listen()
    endpoint = server.endpoint
    await server.listener.close()
    client = bench.dial(endpoint)
    await client.until_lost()
    assert client.calls == ["lost"]


async def test_closing_before_opened_tells_lost_once(bench):
    """A dialler that gives up at once is told `lost`, and nothing is opened afterwards."""
    server = await bench.listen()
    client = bench.dial(server.endpoint)
    client.channel.close("changed my mind")
    assert await client.until_lost() == "changed my mind"
    other = bench.dial(server.endpoint)
    await other.until_opened()
    assert client.calls == ["lost"]


# --- carrying ----------------------------------------------------------------------------------------


async def test_order_is_kept_both_ways(bench):
    """10,000 messages each way, sent over many ticks, arrive complete and in order."""
    client, accepted = await bench.pair()
    expected = [[struct.pack(">I", number)] for number in range(10_000)]

    async def send(session):
        for start in range(0, len(expected), 100):
            session.send(*expected[start : start + 100])
            await asyncio.sleep(0)

    await asyncio.gather(send(client), send(accepted))
    assert await accepted.until_received(10_000) == expected
    assert await client.until_received(10_000) == expected


async def test_ten_thousand_messages_of_one_tick_arrive_in_order(bench):
    """No queue on the way is too short for what one tick produced."""
    client, accepted = await bench.pair()
    expected = [[struct.pack(">I", number)] for number in range(10_000)]
    client.send(*expected)
    accepted.send(*expected)
    assert await accepted.until_received(10_000) == expected
    assert await client.until_received(10_000) == expected


async def test_wakes_of_one_tick_are_answered_once(bench):
    """A hundred wakes in a tick fetch once, and everything that was put in leaves."""
    client, accepted = await bench.pair()
    for session, other in ((client, accepted), (accepted, client)):
        before = session.fetches
        for number in range(100):
            session.send([b"%d" % number])
        assert session.fetches == before, "fetched inside wake"
        assert await other.until_received(100) == [[b"%d" % number] for number in range(100)]
        assert session.fetches == before + 1


async def test_a_wake_with_nothing_to_send_is_harmless(bench):
    """An empty fetch sends nothing, and the connection goes on."""
    client, accepted = await bench.pair()
    for session in (client, accepted):
        before = session.fetches
        session.channel.wake()
        await bench.eventually(lambda s=session, n=before: s.fetches > n, "the fetch")
    client.send([b"after"])
    assert await accepted.until_received(1) == [[b"after"]]


async def test_a_reply_woken_for_inside_receive_leaves(bench):
    """An echo answered from inside `receive` comes back, a thousand times in a row."""
    client, _ = await bench.pair(on_receive=lambda s, frames: s.send(frames))
    await client.until_received(1)
    client.received.clear()
    client._on_receive = lambda s, frames: s.send(frames) if len(s.received) < 1000 else None
    client.send([b"ball"])
    assert await client.until_received(1000) == [[b"ball"]] * 1000


@pytest.mark.parametrize("size", [1 << 20, 10_000_000], ids=["1MiB", "10MB"])
async def test_big_frames_stay_frames_and_unharmed(bench, size):
    """A large body travels as a frame of its own, between small neighbours, both ways."""
    client, accepted = await bench.pair()
    body = os.urandom(1 << 10) * (size >> 10)
    message = [b"head", memoryview(body), b"", body]
    for session, other in ((client, accepted), (accepted, client)):
        session.send([b"before"], message, [b"after"])
        got = await other.until_received(3)
        assert [len(frames) for frames in got] == [1, 4, 1]
        assert got[1][0] == b"head"
        assert got[1][1] == body
        assert got[1][2] == b""
        assert got[1][3] == body
        assert (got[0], got[2]) == ([b"before"], [b"after"])


async def test_frames_are_carried_unread(bench):
    """What makes no sense to anybody above is carried all the same: empty frames, random bytes, many frames."""
    client, accepted = await bench.pair()
    garbage = [[b""], [b"", b"", b""], [os.urandom(300)], [b"\xff" * 7, b"\x00"], [b"%d" % n for n in range(200)]]
    client.send(*garbage)
    accepted.send(*garbage)
    assert await accepted.until_received(len(garbage)) == garbage
    assert await client.until_received(len(garbage)) == garbage


async def test_two_channels_to_one_listener_are_separate(bench):
    """Each connection has sessions of its own; closing one leaves the other."""
    server = await bench.listen(on_receive=lambda s, frames: s.send(frames))
    clients = [bench.dial(server.endpoint) for _ in range(2)]
    for number, client in enumerate(clients):
        client.send([b"%d" % number])
    for number, client in enumerate(clients):
        assert await client.until_received(1) == [[b"%d" % number]]
    assert len(server.sessions) == 2
    clients[0].channel.close()
    await clients[0].until_lost()
    clients[1].send([b"still here"])
    assert (await clients[1].until_received(2))[1] == [b"still here"]
    assert sorted(session.is_open for session in server.sessions) in ([False, True], [True, True])


async def test_two_processes_talk(bench):
    """Frames reach another process and come back."""
    peer = await bench.echo_process()
    client = bench.dial(peer.endpoint)
    message = [b"head", os.urandom(1 << 20)]
    client.send(message)
    assert await client.until_received(1) == [message]


# --- ending ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closing", ["dialler", "accepted"])
async def test_close_tells_both_sides_once_and_last(bench, closing):
    """Whoever closes, each side is told `lost` once; the closer with its own reason."""
    client, accepted = await bench.pair()
    closer, other = (client, accepted) if closing == "dialler" else (accepted, client)
    closer.channel.close("enough")
    closer.channel.close("enough again")
    assert await closer.until_lost() == "enough"
    await other.until_lost()
    closer.send([b"too late"])
    other.send([b"too late"])
    other.channel.close()
    await asyncio.sleep(0)
    for session in (client, accepted):
        session.check(over=True)


@pytest.mark.parametrize("closing", ["dialler", "accepted"])
async def test_close_flushes_what_was_woken_for(bench, closing):
    """What was sent in the very tick of the close arrives before the end."""
    client, accepted = await bench.pair()
    closer, other = (client, accepted) if closing == "dialler" else (accepted, client)
    expected = [[b"%d" % number] for number in range(100)]
    closer.send(*expected)
    closer.channel.close("done")
    await other.until_lost()
    assert other.messages == expected


@pytest.mark.parametrize("closing", ["dialler", "accepted"])
async def test_close_inside_receive_ends_the_connection(bench, closing):
    """A session may close from inside its own `receive`; it receives nothing more."""
    server = await bench.listen(on_receive=lambda s, _: closing == "accepted" and s.channel.close("seen"))
    client = bench.dial(server.endpoint, on_receive=lambda s, _: s.channel.close("seen"))
    client.send([b"one"], [b"two"], [b"three"])
    accepted = await server.next()
    if closing == "dialler":
        await accepted.until_received(3)
        accepted.send([b"one"], [b"two"], [b"three"])
    closer = client if closing == "dialler" else accepted
    assert await closer.until_lost() == "seen"
    assert closer.messages == [[b"one"]]
    await (accepted if closer is client else client).until_lost()


async def test_a_listener_that_closes_tells_every_session(bench):
    """Closing the listener ends its connections on both sides, and frees the endpoint."""
    server = await bench.listen()
    clients = [bench.dial(server.endpoint) for _ in range(3)]
    for client in clients:
        client.send([b"hello"])
    await bench.eventually(lambda: sum(len(s.received) for s in server.sessions) == 3, "three hellos")
    await server.listener.close()
    for session in server.sessions:
        assert session.calls[-1] == "lost", "close returned before lost"
    for client in clients:
        await client.until_lost()
    again = await bench.listen(server.endpoint)
    client = bench.dial(again.endpoint)
    client.send([b"hello again"])
    assert await (await again.next()).until_received(1) == [[b"hello again"]]


async def test_a_listener_with_linger_lets_what_was_sent_leave(bench):
    """With `linger_s`, a farewell of the last tick still arrives."""
    server = await bench.listen()
    client = bench.dial(server.endpoint)
    client.send([b"hello"])
    accepted = await server.next()
    await accepted.until_received(1)
    body = os.urandom(1 << 20)
    accepted.send([b"farewell", body])
    await server.listener.close(linger_s=5.0)
    await client.until_lost()
    assert client.messages == [[b"farewell", body]]


async def test_an_endpoint_that_closes_at_once(bench):
    """A listener may refuse by closing in `opened`; the dialler is told `lost`, whatever it saw before."""
    server = await bench.listen(on_opened=lambda s: s.channel.close("not today"))
    client = bench.dial(server.endpoint, on_opened=lambda s: s.send([b"hello"]))
    accepted = await server.next()
    assert await accepted.until_lost() == "not today"
    await client.until_lost()
    assert accepted.received == []


async def test_a_listening_process_that_vanishes(bench):
    """kill -9 of the listener: the dialler is told, well before any heartbeat would."""
    peer = await bench.echo_process()
    client = bench.dial(peer.endpoint)
    client.send([b"hello"])
    await client.until_received(1)
    async with asyncio.timeout(2.0):
        await peer.vanish()
        await client.until_lost()
    client.send([b"to nobody"])
    await asyncio.sleep(0)
    client.check(over=True)


async def test_a_dialling_process_that_vanishes(bench):
    """kill -9 of a dialler: the accepting session is told."""
    server = await bench.listen()
    peer = await bench.dialling_process(server.endpoint)
    accepted = await server.next()
    await accepted.until_received(1)
    await peer.vanish()
    await accepted.until_lost()


async def test_a_connection_never_comes_back_by_itself(bench):
    """A link is one connection: when the listener is back, only who dials anew is connected."""
    server = await bench.listen()
    client = bench.dial(server.endpoint)
    client.send([b"hello"])
    await (await server.next()).until_received(1)
    await server.listener.close()
    await client.until_lost()
    again = await bench.listen(server.endpoint, on_receive=lambda s, frames: s.send(frames))
    client.send([b"stale"])
    for number in range(20):
        fresh = bench.dial(again.endpoint)
        fresh.send([b"%d" % number])
        await fresh.until_received(1)
        fresh.channel.close()
        await fresh.until_lost()
    assert len(again.sessions) == 20
    assert all(session.messages != [[b"stale"]] for session in again.sessions)
    client.check(over=True)


@pytest.mark.parametrize("offended", ["accepted", "dialler"])
async def test_a_protocol_violation_cuts_only_that_connection(bench, offended, capsys):
    """The session that raises is told `lost`, its peer too; the log names it; a neighbour goes on."""

    def refuse(_session, frames):
        if bytes(frames[0]) == b"nonsense":
            raise ProtocolViolation("unknown kind 99")

    server = await bench.listen(on_receive=refuse)
    client = bench.dial(server.endpoint, on_receive=refuse)
    neighbour = bench.dial(server.endpoint)
    client.send([b"fine"])
    accepted = await server.next()
    await accepted.until_received(1)
    neighbour.send([b"fine"])
    beside = await server.next()
    await beside.until_received(1)

    sender, raiser = (client, accepted) if offended == "accepted" else (accepted, client)
    sender.send([b"nonsense"], [b"never seen"])
    assert "unknown kind 99" in await raiser.until_lost()
    assert "unknown kind 99" in capsys.readouterr().err
    await sender.until_lost()
    assert raiser.messages[-1] == [b"nonsense"]

    neighbour.send([b"still fine"])
    assert (await beside.until_received(2))[1] == [b"still fine"]


async def test_raw_garbage_hurts_nobody(bench):
    """Bytes that are no ZMTP at all, and connections cut half-way: the listener and its peers go on.

    Some of them libzmq takes for a peer of its first version and hands on: to a session, that is garbage as any.
    """
    bench.only(not bench.memory, "has no bytes beneath")
    server = await bench.listen(on_receive=lambda s, frames: s.send(frames))
    client = bench.dial(server.endpoint)
    client.send([b"before"])
    await client.until_received(1)
    address = server.endpoint.split("://")[1]
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" + b"\x00" * 8 + b"\x7f", b"", b"\x00" * 100):
        if bench.ipc:
            _, writer = await asyncio.open_unix_connection(address)
        else:
            _, writer = await asyncio.open_connection(*address.rsplit(":", 1))
        writer.write(garbage)
        try:
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass  # refused already: as well
    client.send([b"after"])
    assert (await client.until_received(2))[1] == [b"after"]


# --- endpoints ---------------------------------------------------------------------------------------


async def test_a_live_endpoint_is_never_stolen(bench):
    """A second listener is refused, from the same transport and from another; the first goes on."""
    server = await bench.listen(on_receive=lambda s, frames: s.send(frames))
    client = bench.dial(server.endpoint)
    client.send([b"one"])
    await client.until_received(1)
    for transport in (bench.far, bench.near):
        with pytest.raises(AddressInUse, match=re.escape(server.endpoint)):
            await bench.listen(server.endpoint, on=transport)
        with pytest.raises(AddressInUse):
            transport.subscriber(server.endpoint, lambda _topic, _frame: None)
    late = bench.dial(server.endpoint)
    for session in (client, late):
        session.send([b"two"])
    await client.until_received(2)
    await late.until_received(1)


async def test_another_process_s_endpoint_is_never_stolen(bench):
    """A listener in another process is safe as well."""
    peer = await bench.echo_process()
    with pytest.raises(AddressInUse):
        await bench.listen(peer.endpoint)
    client = bench.dial(peer.endpoint)
    client.send([b"alive"])
    await client.until_received(1)


async def test_the_endpoint_of_a_killed_process_is_taken_over(bench):
    """kill -9 leaves a stale socket at most; the next listener cleans and takes it."""
    peer = await bench.echo_process()
    await peer.vanish()
    server = await bench.listen(peer.endpoint)
    client = bench.dial(server.endpoint)
    client.send([b"hello"])
    await (await server.next()).until_received(1)


async def test_a_stale_socket_file_is_taken_over(bench):
    """A socket that nobody listens on does not stand in the way."""
    bench.only(bench.ipc, "has no socket files")
    endpoint = bench.far.endpoint("stale")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(endpoint.removeprefix("ipc://"))
        stale.listen()
    server = await bench.listen(endpoint)
    client = bench.dial(endpoint)
    client.send([b"hello"])
    await (await server.next()).until_received(1)


async def test_the_run_directory_is_private(bench):
    """Sockets lie where no other user can reach them."""
    bench.only(bench.ipc, "has no socket files")
    server = await bench.listen()
    path = Path(server.endpoint.removeprefix("ipc://"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_an_ipc_path_that_is_too_long_is_refused(bench):
    """The error says the limit and the mend, for listening, dialling and subscribing."""
    bench.only(bench.ipc, "has no paths")
    endpoint = f"ipc://{bench.run_dir}/{'x' * 100}.sock"
    with pytest.raises(BadEndpoint, match=r"107.*mesh\.run_dir"):
        await bench.listen(endpoint)
    with pytest.raises(BadEndpoint, match=r"107.*mesh\.run_dir"):
        bench.dial(endpoint)
    with pytest.raises(BadEndpoint, match=r"107.*mesh\.run_dir"):
        bench.far.subscriber(endpoint, lambda _topic, _frame: None)


@pytest.mark.parametrize(
    "endpoint", ["", "nonsense", "ipc://", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "udp://x:1"]
)
async def test_a_malformed_endpoint_is_refused(bench, endpoint):
    """The error comes at once, and no session is made."""
    with pytest.raises(BadEndpoint):
        await bench.listen(endpoint or "://")
    with pytest.raises(BadEndpoint):
        bench.dial(endpoint)
    with pytest.raises(BadEndpoint):
        bench.near.publisher().connect(endpoint)
    assert bench.sessions == []


async def test_a_free_tcp_port_is_filled_in(bench):
    """`tcp://…:*` binds, and the listener says where; the same for a subscriber."""
    bench.only(bench.kind == "zmq-tcp", "has no ports")
    server = await bench.listen("tcp://127.0.0.1:*")
    subscriber = bench.far.subscriber("tcp://127.0.0.1:*", lambda _topic, _frame: None)
    for endpoint in (server.endpoint, subscriber.endpoint):
        assert 1 <= int(endpoint.removeprefix("tcp://127.0.0.1:")) <= 65535
    client = bench.dial(server.endpoint)
    client.send([b"hello"])
    await (await server.next()).until_received(1)


async def test_endpoints_handed_out_are_fresh(bench):
    """Two endpoints for one name can both be listened on."""
    servers = [await bench.listen(bench.far.endpoint("w-1")) for _ in range(2)]
    assert servers[0].endpoint != servers[1].endpoint


# --- many, and unequal -------------------------------------------------------------------------------


async def test_a_thousand_channels(bench):
    """A thousand connections to one listener, each with its own answer."""
    if not bench.memory and resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 10_000:
        pytest.skip("the limit of open files is below 10,000: raise it with ulimit -Hn")
    server = await bench.listen(on_receive=lambda s, frames: s.send(frames))
    clients = []
    for start in range(0, 1000, 100):
        group = [bench.dial(server.endpoint) for _ in range(100)]
        for number, client in enumerate(group, start):
            client.send([b"%d" % number])
        for client in group:
            await client.until_received(1)
        clients += group
    assert [client.messages for client in clients] == [[[b"%d" % number]] for number in range(1000)]
    assert len(server.sessions) == 1000


async def test_a_stalled_reader_blocks_nobody_else(bench):
    """While one peer reads nothing and megabytes wait for it, another is served in order."""
    server = await bench.listen()
    await bench.dialling_process(server.endpoint, stalled=True)
    stalled = await server.next()
    await stalled.until_received(1)
    client = bench.dial(server.endpoint)
    client.send([b"hello"])
    accepted = await server.next()
    await accepted.until_received(1)
    body = bytes(1 << 16)
    for number in range(50):
        stalled.send(*[[b"%d" % number, body]] * 10)
        accepted.send([b"%d" % number])
        await asyncio.sleep(0)
    assert await client.until_received(50) == [[b"%d" % number] for number in range(50)]


async def test_a_stalled_listener_blocks_nobody_else(bench):
    """The same with a listener that hangs: connections to others go on."""
    slow = await bench.listen()
    await bench.dialling_process(slow.endpoint, stalled=True)
    stalled = await slow.next()
    await stalled.until_received(1)
    stalled.send(*[[b"much", bytes(1 << 16)]] * 200)
    peer = await bench.echo_process()
    client = bench.dial(peer.endpoint)
    client.send([b"hello"])
    assert await client.until_received(1) == [[b"hello"]]


# --- events ------------------------------------------------------------------------------------------


class Inbox:
    """What a subscriber was given."""

    def __init__(self, bench, *prefixes, endpoint=None):
        self.bench = bench
        self.events = []
        self.subscriber = bench.far.subscriber(
            endpoint or bench.far.endpoint("events"), lambda topic, frame: self.events.append((topic, bytes(frame)))
        )
        for prefix in prefixes:
            self.subscriber.subscribe(prefix)

    @property
    def endpoint(self):
        return self.subscriber.endpoint

    async def until(self, count):
        await self.bench.eventually(lambda: len(self.events) >= count, f"{count} events, came {len(self.events)}")
        return self.events


async def joined(bench, publisher, *inboxes):
    for inbox in inboxes:
        publisher.connect(inbox.endpoint)
    for inbox in inboxes:
        await bench.eventually(lambda i=inbox: publisher.joined(i.endpoint), "the subscriber joined")


async def test_events_reach_those_who_asked_for_the_prefix(bench):
    """Each subscriber gets the topics that begin with one of its prefixes, in order, and no others."""
    orders, everything = Inbox(bench, "order.", "user.left"), Inbox(bench, "")
    publisher = bench.near.publisher()
    await joined(bench, publisher, orders, everything)
    sent = [
        ("order.created", b"1"),
        ("user.joined", b"2"),
        ("user.left", b"3"),
        ("order", b"4"),
        ("order.paid", b""),
        ("größe.geändert", b"6"),
    ]
    for topic, frame in sent:
        publisher.send(topic, frame)
    assert await everything.until(6) == sent
    assert await orders.until(3) == [sent[0], sent[2], sent[4]]


async def test_nothing_sent_after_joined_is_missed(bench):
    """A thousand events, the first in the very tick in which `joined` became true, arrive in order."""
    inbox = Inbox(bench, "n")
    publisher = bench.near.publisher()
    assert not publisher.joined(inbox.endpoint)
    await joined(bench, publisher, inbox)
    for number in range(1000):
        publisher.send("n", b"%d" % number)
    assert await inbox.until(1000) == [("n", b"%d" % number) for number in range(1000)]


async def test_several_publishers_reach_one_subscriber(bench):
    """A subscriber hears every publisher that connects to it, each in its own order."""
    inbox = Inbox(bench, "")
    publishers = [bench.near.publisher(), bench.transport().publisher()]
    for publisher in publishers:
        await joined(bench, publisher, inbox)
    for number in range(100):
        for name, publisher in zip("ab", publishers, strict=True):
            publisher.send(name, b"%d" % number)
    events = await inbox.until(200)
    for name in "ab":
        assert [frame for topic, frame in events if topic == name] == [b"%d" % number for number in range(100)]


async def test_a_later_subscription_takes_effect(bench):
    """A prefix that is added while connected is heard of by the publisher; one taken away as well."""
    inbox = Inbox(bench, "a")
    publisher = bench.near.publisher()
    await joined(bench, publisher, inbox)

    def told(topic):
        publisher.send(topic, b"")
        return any(event[0] == topic for event in inbox.events)

    inbox.subscriber.subscribe("b")
    await bench.eventually(lambda: told("b"), "an event for the new prefix")
    inbox.subscriber.unsubscribe("a")

    def silent():
        publisher.send("a", b"")
        publisher.send("b", b"mark")
        return len(inbox.events) > 2 and {topic for topic, _ in inbox.events[-2:]} == {"b"}

    await bench.eventually(silent, "silence for the old prefix")


async def test_a_disconnected_subscriber_hears_nothing(bench):
    """After `disconnect` nothing is delivered there; others still hear, and it may be connected again."""
    left, stays = Inbox(bench, ""), Inbox(bench, "")
    publisher = bench.near.publisher()
    await joined(bench, publisher, left, stays)
    publisher.connect(stays.endpoint)  # harmless when connected
    publisher.send("one", b"")
    await left.until(1)
    publisher.disconnect(left.endpoint)
    publisher.disconnect(left.endpoint)
    assert not publisher.joined(left.endpoint)
    publisher.send("two", b"")
    assert await stays.until(2) == [("one", b""), ("two", b"")]
    await joined(bench, publisher, left)
    publisher.send("three", b"")
    assert await left.until(2) == [("one", b""), ("three", b"")]
    assert await stays.until(3) == [("one", b""), ("two", b""), ("three", b"")]


async def test_a_subscriber_that_closes_is_no_longer_joined(bench):
    """A publisher notices, goes on for the others, and its endpoint is free again."""
    closes, stays = Inbox(bench, ""), Inbox(bench, "")
    publisher = bench.near.publisher()
    await joined(bench, publisher, closes, stays)
    closes.subscriber.close()
    await bench.eventually(lambda: not publisher.joined(closes.endpoint), "the publisher noticed")
    publisher.send("one", b"")
    assert await stays.until(1) == [("one", b"")]
    publisher.disconnect(closes.endpoint)
    again = Inbox(bench, "", endpoint=closes.endpoint)
    await joined(bench, publisher, again)
    publisher.send("two", b"")
    assert await again.until(1) == [("two", b"")]
    assert closes.events == []


async def test_a_subscriber_that_is_not_there_yet_harms_nobody(bench):
    """Connecting to an absent subscriber is quiet; it is not joined."""
    publisher = bench.near.publisher()
    absent = Inbox(bench, "")
    absent.subscriber.close()
    publisher.connect(absent.endpoint)
    inbox = Inbox(bench, "")
    await joined(bench, publisher, inbox)
    publisher.send("one", b"")
    assert await inbox.until(1) == [("one", b"")]
    assert not publisher.joined(absent.endpoint)
    publisher.close()
    publisher.close()


# --- leaving nothing behind --------------------------------------------------------------------------


async def test_close_leaves_nothing_behind(bench):
    """After `transport.close()` no descriptor, task, or file is left; closing twice is harmless."""

    async def use():
        one, two = bench.transport(), bench.transport()
        server = await bench.listen(on=two)
        await bench.listen(on=two)
        client = bench.dial(server.endpoint, on=one)
        bench.dial(server.endpoint, on=one)
        client.send([b"hello"])
        await (await server.next()).until_received(1)
        inbox = two.subscriber(two.endpoint("events"), lambda _topic, _frame: None)
        publisher = one.publisher()
        publisher.connect(inbox.endpoint)
        await bench.eventually(lambda: publisher.joined(inbox.endpoint), "joined")
        await one.close()
        await two.close()
        await one.close()
        for session in bench.sessions:
            session.check(over=True)

    await use()  # the first use opens what a process keeps (a log, a random source)
    gc.collect()
    descriptors, tasks, files = os.listdir("/proc/self/fd"), asyncio.all_tasks(), os.listdir(bench.run_dir)
    await use()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert asyncio.all_tasks() == tasks
    assert os.listdir(bench.run_dir) == files


async def test_close_does_not_wait_for_a_stalled_peer(bench):
    """Megabytes that nobody reads do not hold up the end of a transport."""
    server = await bench.listen()
    await bench.dialling_process(server.endpoint, stalled=True)
    stalled = await server.next()
    await stalled.until_received(1)
    stalled.send(*[[b"much", bytes(1 << 20)]] * 64)
    await asyncio.sleep(0)
    async with asyncio.timeout(5.0):
        await bench.far.close()
    stalled.check(over=True)

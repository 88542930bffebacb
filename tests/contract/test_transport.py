"""The contract of mesh/transport/contract.py, in memory, over ipc, tcp and CURVE: opening, carrying, many peers."""

from __future__ import annotations

import asyncio
import os
import resource
import struct

import pytest

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
    client = bench.dial(bench.absent_endpoint())
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


async def test_a_few_wakes_of_one_tick_are_answered_once(bench):
    """Ten wakes in a tick fetch once, after the tick, and everything that was put in leaves."""
    client, accepted = await bench.pair()
    for session, other in ((client, accepted), (accepted, client)):
        before = session.fetches
        for number in range(10):
            session.send([b"%d" % number])
        assert session.fetches == before, "fetched inside wake"
        assert await other.until_received(10) == [[b"%d" % number] for number in range(10)]
        assert session.fetches == before + 1


async def test_many_wakes_of_one_tick_are_answered_in_a_few_fetches(bench):
    """A hundred wakes in a tick leave in order, in far fewer fetches; part of them may leave before the tick ends."""
    client, accepted = await bench.pair()
    for session, other in ((client, accepted), (accepted, client)):
        before = session.fetches
        for number in range(100):
            session.send([b"%d" % number])
        assert await other.until_received(100) == [[b"%d" % number] for number in range(100)]
        assert session.fetches - before <= 10


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


# --- many, and unequal -------------------------------------------------------------------------------


async def test_a_thousand_channels(bench):
    """A thousand connections to one listener, each with its own answer; fewer with keys, whose handshakes take long."""
    count = 250 if bench.kind == "zmq-curve" else 1000
    if not bench.memory and resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 10_000:
        pytest.skip("the limit of open files is below 10,000: raise it with ulimit -Hn")
    server = await bench.listen(on_receive=lambda s, frames: s.send(frames))
    clients = []
    for start in range(0, count, 25):
        group = [bench.dial(server.endpoint) for _ in range(25)]
        for number, client in enumerate(group, start):
            client.send([b"%d" % number])
        for client in group:
            await client.until_received(1)
        clients += group
    assert [client.messages for client in clients] == [[[b"%d" % number]] for number in range(count)]
    assert len(server.sessions) == count


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

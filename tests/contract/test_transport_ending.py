"""The transport contract: how connections, listeners and transports end, and what is left of them."""

from __future__ import annotations

import asyncio
import gc
import os
import time

import pytest

from mesh.errors import ProtocolViolation

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


async def test_a_reader_that_takes_its_time_hears_all_before_the_end(bench):
    """What a peer sent before it left is delivered, also when its going is known long before all of that is read."""
    client, accepted = await bench.pair(on_receive=lambda session, frames: time.sleep(0.0005))
    expected = [[b"%d" % number] for number in range(200)]
    client.send(*expected)
    client.channel.close("done")
    await accepted.until_lost()
    assert accepted.messages == expected


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
    """With `linger_s`, a farewell of the last tick still arrives, small or large, every time.

    libzmq drops what came but is unread when a DEALER's connection ends, if IMMEDIATE is set or RECONNECT_IVL is -1.
    """
    for size in (10, 1 << 20) * 5:
        server = await bench.listen()
        client = bench.dial(server.endpoint)
        client.send([b"hello"])
        accepted = await server.next()
        await accepted.until_received(1)
        body = os.urandom(size)
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


async def test_connections_one_after_the_other_are_each_served(bench):
    """Dial, ask, close, without pause: what is known of a connection that ended never spoils the next.

    The operating system gives the new one the descriptor of the old; its end may be noticed only then.
    """
    server = await bench.listen(on_receive=lambda s, frames: s.send(frames))
    for number in range(150):
        client = bench.dial(server.endpoint)
        client.send([b"%d" % number])
        assert await client.until_received(1) == [[b"%d" % number]]
        client.channel.close()
    for session in server.sessions:
        await session.until_lost()
    assert len(server.sessions) == 150


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
    address = server.endpoint.split("://")[1].partition("?")[0]
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

    # What other tests have left in memory is not looked through: that takes most of a second each time.
    gc.freeze()
    try:
        await use()  # the first use opens what a process keeps (a log, a random source)
        gc.collect()
        descriptors, tasks, files = os.listdir("/proc/self/fd"), asyncio.all_tasks(), os.listdir(bench.run_dir)
        await use()
        gc.collect()
    finally:
        gc.unfreeze()
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

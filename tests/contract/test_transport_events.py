"""The transport contract: publishers and subscribers."""

from __future__ import annotations


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

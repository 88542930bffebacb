"""NATS JetStream once more, with every message on the disk before it is confirmed, as the others have it."""

from __future__ import annotations

from benchmarks.publishers import jetstream

PEER = jetstream.peer(
    "jetstream_synced",
    "JetStream, synced",
    "`sync_interval: always` from nats-server 2.10 on; before that its files have the attribute S (`chattr +S`), "
    "so that each write waits for the disk",
    synced=True,
    programs=("chattr",),
)
connect = jetstream.connect

"""What one of each thing costs, as it was measured and kept: `units.json` beside this file.

Owns: the names and their meaning.
Leaves to others: measuring them anew (measure), multiplying them (parts, storm).

They are kept so that the tables are the same wherever they are printed, and whoever doubts one measures it:
`python -m benchmarks.scaling --measure` shows both side by side, `--measure --keep` writes the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

FILE: Final = Path(__file__).with_name("units.json")


class Units(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All _us are processor time of all threads of a process. Links are tcp with keys unless `plain_`.

    Attributes:
        record_bytes: of one encoded record, the model's average.
        table_record_kb, hub_record_kb: what one record takes in a process's table, and in a hub.
        hub_renewal_us, agent_renewal_us: one renewal of one instance, at the hub and at its sender.
        hub_register_us: giving one record its lease.
        hub_snapshot_record_us: placing one record into a snapshot.
        hub_news_us, hub_byte_ns: telling one watcher one piece of news, and each byte of it.
        agent_news_us, agent_byte_ns: hearing it.
        agent_load_us: hearing one load among others.
        agent_snapshot_record_us, agent_snapshot_record_many_us: taking in one record of a snapshot of 800, of 8,000.
        gateway_learn_us: what each instance of a service costs a gateway when one of them changes.
        listeners_us: what each instance of the mesh costs a process that emits, at the first event after a change.
        caller_link_us, worker_link_us: making a link, at either end.
        caller_link_kb, worker_link_kb, caller_link_fds, worker_link_fds: what it holds.
        caller_idle_us, worker_idle_us: keeping it for a second in which nothing is said: heartbeats.
        calm_caller_idle_us, calm_worker_idle_us: the same with links.heartbeat = "5s".
        publish_us, publish_each_us: one event to one subscriber, and to each further one.
        subscriber_kb, subscriber_fds: what a subscriber holds in a publisher.
    """

    record_bytes: float
    table_record_kb: float
    hub_record_kb: float
    hub_renewal_us: float
    agent_renewal_us: float
    hub_register_us: float
    hub_snapshot_record_us: float
    hub_news_us: float
    hub_byte_ns: float
    agent_news_us: float
    agent_byte_ns: float
    agent_load_us: float
    agent_snapshot_record_us: float
    agent_snapshot_record_many_us: float
    gateway_learn_us: float
    listeners_us: float
    caller_link_us: float
    worker_link_us: float
    caller_link_kb: float
    worker_link_kb: float
    caller_link_fds: float
    worker_link_fds: float
    caller_idle_us: float
    worker_idle_us: float
    plain_caller_link_us: float
    plain_worker_link_us: float
    plain_caller_link_kb: float
    plain_worker_link_kb: float
    plain_caller_link_fds: float
    plain_worker_link_fds: float
    plain_caller_idle_us: float
    plain_worker_idle_us: float
    calm_caller_idle_us: float
    calm_worker_idle_us: float
    publish_us: float
    publish_each_us: float
    subscriber_kb: float
    subscriber_fds: float


def kept() -> Units:
    """The figures of the file."""
    return msgspec.json.decode(FILE.read_bytes(), type=Units)


def keep(units: Units) -> None:
    """Write the file."""
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(units), indent=2) + b"\n")

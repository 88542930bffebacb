"""[policies] in mesh.toml, and the same words as options of @rpc."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh import rpc
from mesh.calls.declared import BadDeclaration
from mesh.config.load import load, origins
from mesh.config.policies import PolicySettings, matching, merged, percentile_of
from mesh.errors import ConfigError
from mesh.service.decorators import marks_of
from mesh.service.policy_options import OPTIONS


def read(tmp_path: Path, text: str) -> dict[str, PolicySettings]:
    (tmp_path / "mesh.toml").write_text(text)
    return load(tmp_path / "mesh.toml", env={}).policies


def test_every_key_is_read(tmp_path: Path):
    policies = read(
        tmp_path,
        """
[policies."orders.*"]
timeout = "2s"
attempt_timeout = "300ms"
retries = 2
retry_on = ["unavailable"]
backoff = "10ms"
backoff_most = "1s"
hedge = "p95"
breaker = 0.5
breaker_slow = 0.8
breaker_slow_after = "1s"
breaker_window = "10s"
breaker_minimum = 20
breaker_open = "5s"
breaker_probes = 3
bulkhead = 10
bulkhead_queue = 5
coalesce = true
cache_for = "1s"
cache_stale = "1m"
cache_size = "1MiB"
fallback = { items = [] }
""",
    )
    found = policies["orders.*"]
    assert (found.timeout_s, found.attempt_timeout_s, found.retries, found.cache_bytes) == (2.0, 0.3, 2, 2**20)
    assert found.fallback == b'{"items":[]}'
    assert None not in [getattr(found, each) for each in PolicySettings.__struct_fields__]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[policies."orders.*"]\nretrys = 2', "policies.orders.*.retrys"),
        ('[policies."orders.*"]\nretries = 200', "policies.orders.*.retries"),
        ('[policies."orders.*"]\nhedge = "soon"', "policies.orders.*.hedge"),
        ('[policies."orders.*"]\nhedge = "p5"', "policies.orders.*.hedge"),
        ('[policies."orders.*"]\nbreaker = 2', "policies.orders.*.breaker"),
        ('[policies."orders .*"]\nretries = 2', 'policies."orders .*"'),
        ("[policies]\nretries = 2", "policies"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, named: str):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert f": {named}: " in caught.value.message
    assert "mesh.toml:" in caught.value.message


def test_the_most_specific_table_decides_for_each_key():
    tables = {
        "*": PolicySettings(retries=1, timeout_s=1.0, bulkhead=1),
        "orders.*": PolicySettings(retries=2, timeout_s=2.0),
        "orders.place": PolicySettings(retries=3),
        "stock.*": PolicySettings(retries=9),
    }
    policy = merged(matching(tables, "orders.place"))
    assert (policy.retries, policy.timeout_s, policy.bulkhead) == (3, 2.0, 1)


def test_percentiles():
    assert (percentile_of("p95"), percentile_of("p50"), percentile_of("50ms")) == (0.95, 0.5, None)


def test_what_is_set_is_listed_by_mesh_config(tmp_path: Path):
    (tmp_path / "mesh.toml").write_text('[policies."orders.*"]\nretries = 2\nfallback = []\n')
    rows = {row.key: row for row in origins(tmp_path / "mesh.toml", env={}) if row.key.startswith("policies.")}
    assert {key: row.value for key, row in rows.items()} == {
        "policies.orders.*.retries": 2,
        "policies.orders.*.fallback": [],
    }
    assert rows["policies.orders.*.retries"].origin.endswith("mesh.toml:2")


def test_the_decorator_has_the_same_words():
    @rpc(retries=2, attempt_timeout=0.25, backoff="10ms", cache_size=2**20, fallback=None, limit="5/s")
    async def place() -> None: ...

    mark = marks_of(place).rpc  # type: ignore[union-attr]
    assert mark.policy == PolicySettings(
        retries=2, attempt_timeout_s=0.25, backoff_s=0.01, cache_bytes=2**20, fallback=b"null"
    )
    assert mark.edge.rates == ["5/s"]
    keys = {key for key in PolicySettings.__struct_encode_fields__ if key != "timeout"}
    assert keys == OPTIONS


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"retrys": 2}, "retrys"),
        ({"retries": -1}, "retries"),
        ({"retries": True}, "retries"),
        ({"breaker": 0}, "breaker"),
        ({"hedge": 5}, "hedge"),
        ({"attempt_timeout": 0}, "attempt_timeout"),
        ({"backoff": "soon"}, "backoff"),
        ({"fallback": object()}, "fallback"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], named: str):
    with pytest.raises(BadDeclaration) as caught:
        rpc(**options)  # type: ignore[call-overload]
    assert named in str(caught.value)

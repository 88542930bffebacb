"""One page from many processes is what Prometheus reads."""

import copy

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mesh.clock import ManualClock
from mesh.telemetry.foreign import MAX_SAMPLES, foreign_families
from mesh.telemetry.metrics import BOUNDS, OTHER, Recorder, render


def page(*snapshots) -> dict[tuple[str, frozenset], float]:
    """The page as Prometheus sees it: value by sample name and labels. Fails where Prometheus would."""
    body, content_type = render(snapshots)
    assert content_type.startswith("text/plain; version=")
    found = {}
    families = set()
    for family in text_string_to_metric_families(body.decode()):
        assert family.name not in families, f"{family.name} comes twice"
        assert family.documentation
        families.add(family.name)
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} comes twice"
            found[key] = sample.value
    return found


def value(found, name, **labels):
    return found[name, frozenset(labels.items())]


def snapshot(*calls, side="server", service="greeting", method="hello", **more):
    """What a process tells that answered calls of these lengths."""
    recorder = Recorder(ManualClock())
    stats = recorder.method(side, service, method)
    for seconds in calls:
        stats.begin()
        stats.end(seconds, more.get("code", ""))
    return msgpack.unpackb(msgpack.packb(recorder.snapshot()))


HELLO = {"side": "server", "service": "greeting", "method": "hello"}


def test_each_process_has_its_own_samples():
    """Two workers of one service stand side by side, told apart by their labels."""
    found = page(({"worker": "w1", "host": "a"}, snapshot(0.1)), ({"worker": "w2", "host": "a"}, snapshot(0.1, 0.2)))
    assert value(found, "mesh_requests_total", process="w1", host="a", **HELLO) == 1
    assert value(found, "mesh_requests_total", process="w2", host="a", **HELLO) == 2
    assert value(found, "mesh_worker_up", process="w1", host="a") == 1


def test_the_histogram_adds_up():
    """Buckets are cumulative, the last one is the count, the sum is the time."""
    found = page(({"worker": "w"}, snapshot(0.0001, 0.0004, 0.2, 60.0)))
    at = {b: value(found, "mesh_request_seconds_bucket", process="w", le=repr(b), **HELLO) for b in BOUNDS}
    assert (at[0.00025], at[0.0005], at[0.1], at[0.25], at[10.0]) == (1, 2, 2, 3, 3)
    assert list(at.values()) == sorted(at.values())
    assert value(found, "mesh_request_seconds_bucket", process="w", le="+Inf", **HELLO) == 4
    assert value(found, "mesh_request_seconds_count", process="w", **HELLO) == 4
    assert value(found, "mesh_request_seconds_sum", process="w", **HELLO) == pytest.approx(60.2005)


def test_errors_carry_their_code():
    """Calls that ended badly are counted among all, and by code."""
    found = page(({"worker": "w"}, snapshot(0.1, 0.1, code="overloaded")))
    assert value(found, "mesh_request_errors_total", process="w", code="overloaded", **HELLO) == 2
    assert value(found, "mesh_requests_total", process="w", **HELLO) == 2


def test_what_is_under_way_is_shown():
    """Calls begun and not ended are a gauge."""
    recorder = Recorder(ManualClock())
    recorder.method("client", "a", "b").begin()
    found = page(({}, recorder.snapshot()))
    assert value(found, "mesh_in_flight", side="client", service="a", method="b") == 1


def test_equal_labels_are_added_up():
    """Without labels that tell them apart, two processes count as one: valid, and true."""
    found = page(({"service": "x"}, snapshot(0.1)), ({"service": "x"}, snapshot(0.1, 0.1)))
    assert value(found, "mesh_requests_total", **HELLO) == 3
    assert value(found, "mesh_request_seconds_bucket", le="+Inf", **HELLO) == 3
    assert value(found, "mesh_process_uptime_seconds", service="x") == 0


def test_two_releases_with_other_bounds_still_add_up():
    """While a release is rolled out, a bucket may lack in one of them: no count is claimed to be faster than it was."""
    other = snapshot(0.0001, 0.3)
    other["bounds"] = [0.001, 0.4]
    other["methods"][0]["buckets"] = [1, 1, 0]
    found = page(({}, snapshot(0.0001, 0.3)), ({}, other))

    def at(bound):
        return value(found, "mesh_request_seconds_bucket", le=bound, **HELLO)

    assert [at("0.00025"), at("0.001"), at("0.25"), at("0.4"), at("0.5"), at("+Inf")] == [1, 2, 2, 3, 4, 4]


def test_the_label_of_the_call_wins_over_that_of_the_process():
    """A worker of `orders` that calls `users` counts for `users`; its memory is that of `orders`."""
    found = page(({"worker": "w", "service": "orders"}, snapshot(0.1, side="client", service="users", method="get")))
    assert value(found, "mesh_requests_total", process="w", side="client", service="users", method="get") == 1
    assert value(found, "mesh_process_cpu_seconds_total", process="w", service="orders") > 0


def test_the_process_is_on_the_page():
    """Memory, processor time, descriptors, threads and uptime, with the labels of the process."""
    found = page(({"worker": "w"}, snapshot()))
    for name in ("resident_bytes", "pss_bytes", "cpu_seconds_total", "open_fds", "threads", "uptime_seconds"):
        assert value(found, f"mesh_process_{name}", process="w") >= 0


def test_what_the_system_does_not_tell_is_not_on_the_page():
    """No invented zeros."""
    poor = snapshot()
    poor["process"].update(pss_bytes=None, resident_bytes=None, open_fds=None)
    names = {name for name, _ in page(({}, poor))}
    assert not names & {"mesh_process_pss_bytes", "mesh_process_resident_bytes", "mesh_process_open_fds"}
    assert "mesh_process_threads" in names


def test_counters_and_gauges_are_on_the_page():
    """Under `mesh_` and, for counters, `_total`, with their own labels and help."""
    recorder = Recorder(ManualClock())
    recorder.counter("links_lost", "Links that were lost.", reason="killed").add(3)
    recorder.gauge("links", lambda: 2.5)
    found = page(({"worker": "w"}, recorder.snapshot()))
    assert value(found, "mesh_links_lost_total", process="w", reason="killed") == 3
    assert value(found, "mesh_links", process="w") == 2.5
    assert b"# HELP mesh_links_lost_total Links that were lost." in render([({}, recorder.snapshot())])[0]


def test_a_process_that_did_not_answer_is_told():
    """Its absence is a sample to alert on, not a hole."""
    found = page(({"worker": "w1"}, snapshot(0.1)), ({"worker": "w2"}, None))
    assert value(found, "mesh_worker_up", process="w1") == 1
    assert value(found, "mesh_worker_up", process="w2") == 0


def _broken(change):
    broken = copy.deepcopy(snapshot(0.1))
    change(broken)
    return broken


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"bounds": "x"},
        [1, 2],
        _broken(lambda s: s.pop("process")),
        _broken(lambda s: s["methods"][0].update(buckets=[1])),
        _broken(lambda s: s["methods"][0].update(service=None)),
        _broken(lambda s: s.update(bounds=[1.0] * len(BOUNDS))),
        _broken(lambda s: s.update(counters=[{"name": "x"}])),
    ],
    ids=["empty", "bounds", "a list", "no process", "few buckets", "no service", "equal bounds", "no value"],
)
def test_a_malformed_snapshot_spoils_only_itself(broken):
    """The page stays valid, shows the others, and says who is missing."""
    found = page(({"worker": "bad"}, broken), ({"worker": "good"}, snapshot(0.1)))
    assert value(found, "mesh_worker_up", process="bad") == 0
    assert value(found, "mesh_requests_total", process="good", **HELLO) == 1


def test_names_that_would_break_the_page_are_left_out():
    """Another release, or a peer with a defect, cannot claim the page's own names nor one for two kinds."""
    odd = snapshot(0.1)
    odd["counters"] = [
        {"name": "requests", "value": 9.0},
        {"name": "process_threads", "value": 9.0},
        {"name": "two words", "value": 9.0},
        {"name": "twice", "value": 9.0},
    ]
    odd["gauges"] = [{"name": "twice", "value": 8.0}, {"name": "request_seconds_count", "value": 8.0}]
    found = page(({}, odd))
    assert value(found, "mesh_requests_total", **HELLO) == 1
    assert value(found, "mesh_twice_total") == 9
    assert 8.0 not in found.values()


def test_an_empty_page_is_a_page():
    """Nobody to show is no error."""
    assert page() == {}


anything = st.text(max_size=12).filter(lambda s: s.isprintable() or "\n" in s or '"' in s or "\\" in s)


@given(
    st.dictionaries(st.sampled_from(["worker", "le", "__name__", "a b", "", "9", "host"]), anything, max_size=4),
    anything,
    anything,
    anything,
)
def test_no_name_breaks_the_page(labels, service, method, code):
    """Quotes, line ends, backslashes, reserved label names: the page can be parsed and nothing is lost."""
    recorder = Recorder(ManualClock())
    for each in (service, OTHER):
        stats = recorder.method("http", each, method)
        stats.begin()
        stats.end(0.1, code)
    found = page((labels, recorder.snapshot()))
    assert sum(v for (name, _), v in found.items() if name == "mesh_requests_total") == 2


# --- names that outlive a restart --------------------------------------------------------------------------


def supervised(name: str, *seconds: float) -> dict:
    return {**snapshot(*seconds), "identity": {"name": name, "release": "0.1.0-1a2b", "version": "0.1.0"}}


def test_a_process_keeps_its_series_when_it_restarts():
    """The worker id, new with each start, is on mesh_build_info alone."""
    before = page(({"worker": "orders-1", "host": "a"}, supervised("orders:orders_0", 0.1)))
    after = page(({"worker": "orders-2", "host": "a"}, supervised("orders:orders_0", 0.1)))
    assert {name for name, _ in set(before) ^ set(after)} == {"mesh_build_info"}
    assert value(after, "mesh_worker_up", process="orders:orders_0", host="a") == 1


def test_which_release_runs_is_told_once_for_each_process():
    found = page(({"worker": "orders-1"}, supervised("orders:orders_0")))
    labels = {"process": "orders:orders_0", "worker": "orders-1", "version": "0.1.0", "release": "0.1.0-1a2b"}
    assert value(found, "mesh_build_info", **labels) == 1


def test_the_versions_of_services_are_on_the_page():
    """One series for each service of a process; canaries are marked, and a restart adds none."""
    services = [{"service": "orders", "version": "2.1"}, {"service": "stock", "canary": True}]
    for worker in ("orders-1", "orders-2"):
        found = page(({"worker": worker, "service": "orders+stock"}, {**supervised("o:o_0"), "services": services}))
        both = {"process": "o:o_0", "release": "0.1.0-1a2b"}
        assert value(found, "mesh_service_info", **both, service="orders", version="2.1", canary="no") == 1
        assert value(found, "mesh_service_info", **both, service="stock", canary="yes") == 1


def test_metrics_of_prometheus_client_are_on_the_page():
    """An application's own, a histogram included, with the labels of its process; those of the interpreter are not."""
    foreign = [
        {"name": "orders", "type": "counter", "help": "Placed.", "samples": [["orders_total", {"kind": "gift"}, 3.0]]},
        {
            "name": "size",
            "type": "histogram",
            "help": "",
            "samples": [["size_bucket", {"le": "+Inf"}, 2.0], ["size_count", {}, 2.0], ["size_sum", {}, 7.0]],
        },
        {"name": "mesh_requests", "type": "counter", "help": "", "samples": [["mesh_requests_total", {}, 9.0]]},
    ]
    found = page(
        ({"worker": "w1"}, {**snapshot(), "foreign": foreign}), ({"worker": "w2"}, {**snapshot(), "foreign": foreign})
    )
    assert value(found, "orders_total", process="w1", kind="gift") == 3
    assert value(found, "size_bucket", process="w2", le="+Inf") == 2
    assert 9 not in found.values()


def test_a_registry_is_read_where_prometheus_client_is_used(monkeypatch: pytest.MonkeyPatch):
    """Counters and gauges of the default registry; never the interpreter's own; bounded."""
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    prometheus_client.Counter("gifts", "Wrapped.", ["colour"], registry=registry).labels("red").inc(2)
    prometheus_client.Gauge("process_things", "", registry=registry).set(1)
    many = prometheus_client.Gauge("many", "", ["user"], registry=registry)
    for user in range(MAX_SAMPLES + 1):
        many.labels(str(user)).set(1)
    assert [(each.name, each.samples) for each in foreign_families()] == [
        ("gifts", [("gifts_total", {"colour": "red"}, 2.0)])
    ]

"""Chains and groups as rows: who waits for whom, and where answers go."""

from __future__ import annotations

import msgspec
import pytest

from mesh.errors import BadArguments
from mesh.tasks.batch import chain_jobs, group_jobs
from mesh.tasks.canvas import chain, compile, group, prior, step, with_prior
from mesh.tasks.deferring import PRIOR_META, Target

pack = msgspec.msgpack.encode


def compiled(part):
    return compile(part, lambda name: Target(f"s.{name}"), 1000.0, 10_000)


def shape(rows):
    """(queue, waits, feeds as a place in rows, place, gathers) of each row."""
    places = {row.task.id: place for place, row in enumerate(rows.rows)}
    return [
        (
            row.task.queue.removeprefix("s."),
            row.task.waits,
            places.get(row.task.feeds),
            row.task.place,
            row.task.gathers,
        )
        for row in rows.rows
    ]


def test_each_step_of_a_chain_waits_for_the_one_before():
    """One feeds the next; only the first may run at once."""
    rows = compiled(chain(step("a", 1), step("b", prior), "c"))
    assert shape(rows) == [("a", 0, 1, 0, False), ("b", 1, 2, 0, False), ("c", 1, None, 0, False)]
    assert [row.task.meta.get(PRIOR_META) for row in rows.rows] == [None, "0", None]
    assert rows.rows[1].task.body == pack((None,))


def test_the_callback_of_a_group_gathers_its_members():
    """Each member has its place in the list."""
    rows = compiled(group("a", "b", "c", then=step("d", prior)))
    assert shape(rows) == [
        ("a", 0, 3, 0, False),
        ("b", 0, 3, 1, False),
        ("c", 0, 3, 2, False),
        ("d", 3, None, 0, True),
    ]


def test_a_group_of_one_answers_with_a_list_of_one():
    """The shape of `prior` does not depend on how many there happen to be."""
    assert shape(compiled(group("a", then="d"))) == [("a", 0, 1, 0, False), ("d", 1, None, 0, True)]


def test_members_may_be_chains_and_the_callback_too():
    """The tails of the members feed the head of the callback."""
    rows = compiled(group(chain("a", "b"), "c", then=chain("d", "e")))
    assert shape(rows) == [
        ("a", 0, 1, 0, False),
        ("b", 1, 3, 0, False),
        ("c", 0, 3, 1, False),
        ("d", 2, 4, 0, True),
        ("e", 1, None, 0, False),
    ]
    found = group_jobs(rows, lambda task, target: target.queue)
    assert ([*found.jobs], found.then) == (["s.b", "s.c"], "s.e")


def test_a_group_within_a_group_is_one_member_when_it_has_a_callback():
    """The jobs of the outer group are those that its own callback waits for."""
    rows = compiled(group(group("a", "b", then="x"), "c", then="d"))
    found = group_jobs(rows, lambda task, target: target.queue)
    assert ([*found.jobs], found.then) == (["s.x", "s.c"], "s.d")
    flat = group_jobs(compiled(group(group("a", "b"), "c")), lambda task, target: target.queue)
    assert ([*flat.jobs], flat.then) == (["s.a", "s.b", "s.c"], None)


def test_a_chain_may_begin_with_a_group():
    """`chain(group(a, b), c)` is `group(a, b, then=c)`."""
    assert shape(compiled(chain(group("a", "b"), "c"))) == shape(compiled(group("a", "b", then="c")))


def test_what_one_task_cannot_feed_is_refused():
    """A task feeds one other; the message says what to do instead."""
    with pytest.raises(BadArguments, match=r"s\.a"):
        compiled(chain("a", group("b", "c")))
    with pytest.raises(BadArguments, match="group"):
        chain_jobs(compiled(chain(group("b", "c"))), lambda task, target: target)
    with pytest.raises(BadArguments, match=r"s\.a: mesh\.prior"):
        compiled(chain(step("a", prior), "b"))
    for make in (chain, group):
        with pytest.raises(BadArguments):
            make()


def test_the_options_of_a_step_are_those_of_defer():
    """And are checked as there."""
    row = compiled(chain("a", step("b").options(key="k", priority=9, delay="1m", order="o"))).rows[1].task
    assert (row.key, row.priority, row.due_at, row.order) == ("k", 9, 1060.0, "o")
    with pytest.raises(BadArguments, match="priority=10"):
        compiled(step("b").options(priority=10))
    with pytest.raises(BadArguments, match="mesh-prior"):
        compiled(step("b").options(meta={PRIOR_META: "0"}))


@pytest.mark.parametrize(
    ("args", "kwargs", "complete"),
    [
        ((prior,), {}, (7,)),
        ((1, prior, prior), {}, (1, 7, 7)),
        ((), {"n": prior}, {"n": 7}),
        ((1, prior), {"n": prior}, {0: 1, 1: 7, "n": 7}),
        ((*range(20), prior), {}, (*range(20), 7)),
    ],
)
def test_the_answer_takes_the_places_of_prior(args, kwargs, complete):
    """By position, by name, in both forms of a body."""
    task = compiled(chain("a", step("b", *args, **kwargs))).rows[1].task
    body = with_prior(task.body, task.meta[PRIOR_META], pack(7))
    assert msgspec.msgpack.decode(body) == msgspec.msgpack.decode(pack(complete))


def test_no_answer_is_nil():
    """A step that returned nothing."""
    assert with_prior(pack((0,)), "0", b"") == pack((None,))


@pytest.mark.parametrize(
    ("body", "places"), [(pack(()), "0"), (pack((1,)), "x"), (pack({"a": 1}), "b"), (b"\xc1", "0"), (b"", "0")]
)
def test_an_answer_without_a_place_is_refused(body, places):
    """A body that was not made by `compile` does not stop the worker."""
    with pytest.raises(BadArguments):
        with_prior(body, places, pack(7))

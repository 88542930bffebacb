"""Ages, size, and what is forgotten first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.answer_cache import OVERHEAD_BYTES, AnswerCache


def test_an_answer_is_fresh_then_stale_then_forgotten():
    cache: AnswerCache[str] = AnswerCache(fresh_s=10.0, stale_s=5.0, most_bytes=2**20)
    cache.put("k", "v", 1, 0.0)
    assert cache.get("k", 9.9) == ("v", True)
    assert cache.get("k", 10.0) == ("v", False)
    assert cache.get("k", 15.0) is None
    assert (len(cache), cache.size) == (0, 0)


def test_what_was_not_used_for_the_longest_time_goes_first():
    cache: AnswerCache[int] = AnswerCache(10.0, 0.0, 16 * (100 + OVERHEAD_BYTES))
    for number in range(16):
        cache.put(number, number, 100, 0.0)
    cache.get(0, 1.0)
    cache.put(16, 16, 100, 1.0)
    assert cache.get(1, 1.0) is None
    assert cache.get(0, 1.0) == (0, True)
    assert len(cache) == 16


def test_an_answer_that_would_push_out_all_others_is_not_kept():
    cache: AnswerCache[str] = AnswerCache(10.0, 0.0, 80_000)
    cache.put("k", "old", 10, 0.0)
    cache.put("k", "large", 10_000, 1.0)
    assert cache.get("k", 1.0) is None
    assert cache.size == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3000)), max_size=100))
def test_the_size_is_that_of_the_answers_and_never_more_than_allowed(puts: list[tuple[int, int]]):
    cache: AnswerCache[int] = AnswerCache(10.0, 0.0, 30_000)
    sizes: dict[int, int] = {}
    for number, (key, size) in enumerate(puts):
        cache.put(key, size, size, float(number) / 100)
        sizes[key] = size + OVERHEAD_BYTES
        assert cache.size <= 30_000
    kept = {key for key in sizes if cache.get(key, 1.0) is not None}
    assert cache.size == sum(sizes[key] for key in kept)

"""services.textstats: all instances count one text; pipelines; documents that one instance holds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

import mesh
from services.textstats import Report, TextStats, WordCount, counting

Start = Callable[..., Any]

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "runs", "away"]


def prose(words: int) -> str:
    chosen = random.Random(7)
    return " ".join(chosen.choice(WORDS) for _ in range(words)) + "\n"


async def acquaint(running: Any) -> None:
    """Have every worker linked to every other: a key chooses among the instances that can be called now."""
    for worker in running.workers:
        await running.node.call("textstats.analyze", prose(100), instance=worker.instance_ids[0])


def counted_by(running: Any) -> list[int]:
    """How many pieces each worker has counted."""
    return [worker.node.recorder.method("server", "textstats", "count").count for worker in running.workers]


async def test_all_instances_count_a_piece_and_the_sum_is_that_of_one(start: Start) -> None:
    """Parallel: over HTTP, three replicas each count a third; merged it is what one would have counted."""
    running = await start(TextStats, 3)
    text = prose(30_000)
    async with running.http.post("/textstats", json={"text": text, "top": 3}) as told:
        assert told.status == 200, await told.text()
        report = await told.json()
    alone = counting.report(counting.count(text), 3)
    assert (report["characters"], report["lines"], report["words"], report["distinct"]) == (
        alone.characters,
        alone.lines,
        alone.words,
        alone.distinct,
    )
    assert [WordCount(**each) for each in report["top"]] == alone.top
    assert counted_by(running) == [1, 1, 1]
    shares = {share["instance"]: share["characters"] for share in report["shares"]}
    assert set(shares) == {worker.instance_ids[0] for worker in running.workers}
    assert max(shares.values()) < 0.4 * len(text)


async def test_a_short_text_is_counted_too(start: Start) -> None:
    """Fewer words than instances, one, none."""
    node = (await start(TextStats, 3)).node
    for text, words in (("to be", 2), ("one", 1), ("", 0), ("   ", 0)):
        assert (await node.rpc[TextStats].analyze(text)).words == words


async def test_a_piece_whose_instance_is_gone_is_counted_by_another(start: Start) -> None:
    """An instance that leaves between the news of it and its piece costs time, not the answer."""
    running = await start(TextStats, 2)
    text = prose(1000)
    asked, other = running.workers
    service = asked.services[0]
    # What the asked one knows is a moment old: the other has left, and the news is still under way.
    known = asked.node.instances("textstats")
    await running.mesh.drain(other)
    pieces = counting.split(text, 2)
    counts = await service._scatter(pieces, known)
    assert counting.merge(counts) == counting.count(text)


async def test_the_pipeline_cleans_before_it_counts(start: Start) -> None:
    """Sequential: both stages run, on whoever has time, and the second sees what the first gave."""
    running = await start(TextStats, 2)
    async with running.http.post("/textstats/pipeline", json={"text": "<b>bold</b> &amp; <i>bold</i>"}) as told:
        report = await told.json()
    assert report["top"] == [{"word": "bold", "count": 2}]
    texts = [f"<p>{word}</p>" for word in WORDS * 5]
    await asyncio.gather(*(running.node.call("textstats.pipeline", text) for text in texts))
    assert min(counted_by(running)) > 0, "one instance did all the work"


async def test_the_second_stage_works_while_the_first_still_does(start: Start) -> None:
    """A stream from stage to stage: progress comes paragraph by paragraph, and leaving early stops both."""
    running = await start(TextStats, 2)
    text = "\n\n".join(f"<p>word{i} again</p>" for i in range(200))
    told = [each async for each in running.node.rpc[TextStats].progress(text)]
    assert (len(told), told[0].words, told[-1].words, told[-1].distinct) == (200, 2, 400, 201)

    stream = running.node.stream("textstats.progress", "a\n\n" * 200_000)
    async for first in stream:
        assert first["paragraphs"] == 1
        break
    await stream.aclose()
    async with asyncio.timeout(10):
        while any(worker.node.server.in_hand for worker in running.workers):  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)


async def test_a_document_is_held_by_one_instance_whoever_is_asked(start: Start) -> None:
    """Selective by key: what was added through any instance is found through any other."""
    running = await start(TextStats, 3)
    await acquaint(running)
    ids = [worker.instance_ids[0] for worker in running.workers]
    for instance in ids:
        await running.node.call("textstats.add", "anna", "one two", instance=instance)
    async with running.http.post("/textstats/documents/anna", json={"text": "three"}) as told:
        assert (told.status, (await told.json())["words"]) == (200, 7)
    for instance in ids:
        report = await running.node.call("textstats.document", "anna", instance=instance)
        assert report["words"] == 7
    holders = [worker for worker in running.workers if "anna" in worker.services[0]._documents]
    assert len(holders) == 1


async def test_documents_are_spread_over_the_instances(start: Start) -> None:
    """Keys share out: with sixty of them no instance is left without."""
    running = await start(TextStats, 3)
    await acquaint(running)
    await asyncio.gather(*(running.node.call("textstats.add", f"document-{i}", "x") for i in range(60)))
    held = [len(worker.services[0]._documents) for worker in running.workers]
    assert sum(held) == 60
    assert min(held) > 0


async def test_an_unknown_document_is_404(start: Start) -> None:
    """The error of the instance that holds the key passes through the one that was asked."""
    running = await start(TextStats, 2)
    async with running.http.get("/textstats/documents/nobody") as told:
        assert (told.status, (await told.json())["code"]) == (404, "unknown_document")
    with pytest.raises(mesh.RemoteError, match="UnknownDocument"):
        await running.node.rpc[TextStats].document("nobody")


async def test_an_event_is_added_to_the_document_that_its_topic_names(start: Start) -> None:
    """Selective by topic: one instance hears of it, once; other topics are not heard."""
    running = await start(TextStats, 3)
    await acquaint(running)
    await running.node.emit("text.posted.mail.anna", "dear anna")
    await running.node.emit("text.removed.mail.anna", "dear anna")
    report: Report = await running.node.rpc[TextStats].document("mail.anna")
    assert (report.words, report.top[0]) == (2, WordCount("anna", 1))


async def test_a_document_longest_unused_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded; reading counts as use."""
    monkeypatch.setattr("services.textstats.service.MOST_DOCUMENTS", 2)
    service = TextStats()
    await service.keep("a", "x")
    await service.keep("b", "x")
    await service.kept("a")
    await service.keep("c", "x")
    assert list(service._documents) == ["a", "c"]

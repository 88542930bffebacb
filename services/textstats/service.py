"""Word counts of a text, and the three shapes in which services pass messages to each other:

parallel    scatter-gather: everybody gets a piece at the same time, the answers are merged.
            `analyze` cuts the text into as many pieces as there are instances and gives each instance one.
sequential  a pipeline: what one stage gives, the next one takes; each stage runs on any instance.
            `pipeline` does it call by call; `progress` with streams, so that the second stage works while the first
            still does, and a slow reader slows both.
selective   the message chooses who gets it.
            By key: `add` and `document` reach the one instance that holds the document, whoever was asked.
            By topic: `posted` hears of events named `text.posted.…`, and whoever emits them knows nothing of it.

Owns: who does what. Leaves to others: counting itself (counting), the answers' shapes (shapes).

Documents live in the memory of their instance and go with it; when instances come or go, a few keys move to another
one, which begins anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Final, cast

import msgspec

import mesh
from mesh import http, on, rpc
from services.textstats import counting
from services.textstats.shapes import Counts, Progress, Report, Share

Top = Annotated[int, msgspec.Meta(ge=0, le=1000, description="how many of the most frequent words to return")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200, description="of a document")]

#: An instance keeps this many documents, and forgets the one that was longest unused.
MOST_DOCUMENTS: Final = 1000
POSTED: Final = "text.posted."


class UnknownDocument(mesh.ServiceError):
    """Nothing was added under this name, or it is forgotten."""

    code = "unknown_document"
    status = 404


class TextStats(mesh.Service):
    """Counts words, all instances together."""

    name = "textstats"
    version = "1.0"

    def __init__(self) -> None:
        self._documents: OrderedDict[str, Counts] = OrderedDict()

    # --- parallel -----------------------------------------------------------------------------------------

    @http.post("/textstats")
    @rpc(idempotent=True)
    async def analyze(self, text: str, top: Top = 10) -> Report:
        """Count the words of a text, each instance a piece of it at the same time."""
        instances = cast(mesh.Node, self.node).instances(self.name)
        pieces = counting.split(text, len(instances))
        counts = await self._scatter(pieces, instances)
        report = counting.report(counting.merge(counts), top)
        report.shares = [Share(one.id, len(piece)) for one, piece in zip(instances, pieces, strict=False)]
        return report

    async def _scatter(self, pieces: Sequence[str], instances: Sequence[mesh.Instance]) -> list[Counts]:
        answers = await asyncio.gather(
            *(
                self.call("textstats.count", piece, instance=one.id)
                for one, piece in zip(instances, pieces, strict=False)
            ),
            return_exceptions=True,
        )
        for number, answer in enumerate(answers):
            # It left, or died with the piece in its hands: to count it twice does no harm, so anybody else may do it.
            if isinstance(answer, mesh.TryLater | mesh.LinkLost):
                answers[number] = await self.call("textstats.count", pieces[number])
            elif isinstance(answer, BaseException):
                raise answer
        return msgspec.convert(answers, list[Counts])

    # In a thread: counting megabytes takes long enough for other callers to notice, and the instances, which are
    # processes of their own, spread it over the cores.
    @rpc(idempotent=True, offload="thread")
    def count(self, text: str) -> Counts:
        """Count the words of a text, here and now."""
        return counting.count(text)

    # --- sequential ---------------------------------------------------------------------------------------

    @http.post("/textstats/pipeline")
    @rpc(idempotent=True)
    async def pipeline(self, text: str, top: Top = 10) -> Report:
        """Clean a text of markup, then count its words: two stages, each on whichever instance has time."""
        cleaned: str = await self.call("textstats.clean", text)
        counts = msgspec.convert(await self.call("textstats.count", cleaned), Counts)
        return counting.report(counts, top)

    @rpc(idempotent=True, offload="thread")
    def clean(self, text: str) -> str:
        """Take markup out of a text: tags, entities, and typographic variants of letters."""
        return counting.clean(text)

    @http.post("/textstats/progress")
    @rpc
    async def progress(self, text: str) -> AsyncIterator[Progress]:
        """Count the words of a text while it is being cleaned: how far it has come after each paragraph."""
        words = 0
        distinct: set[str] = set()
        number = 0
        async for paragraph in self.stream("textstats.paragraphs", text):
            number += 1
            found = counting.count(paragraph).words
            words += sum(found.values())
            distinct.update(found)
            yield Progress(number, words, len(distinct))

    @rpc
    async def paragraphs(self, text: str) -> AsyncIterator[str]:
        """The paragraphs of a text one by one, cleaned of markup."""
        for paragraph in counting.paragraphs(text):
            yield counting.clean(paragraph)

    # --- selective ----------------------------------------------------------------------------------------

    @http.post("/textstats/documents/{document}")
    @rpc
    async def add(self, document: Name, text: str, top: Top = 10) -> Report:
        """Add a text to a document and tell of the whole document."""
        return msgspec.convert(await self.call("textstats.keep", document, text, top, key=document), Report)

    @http.get("/textstats/documents/{document}")
    @rpc(idempotent=True)
    async def document(self, document: Name, top: Top = 10) -> Report:
        """Tell of a document. Errors: 404 `unknown_document`."""
        return msgspec.convert(await self.call("textstats.kept", document, top, key=document), Report)

    @rpc
    async def keep(self, document: Name, text: str, top: Top = 10) -> Report:
        """Add to a document that this instance holds; `add` finds the right one."""
        whole = counting.merge((self._documents.get(document, Counts()), counting.count(text)))
        self._documents[document] = whole
        self._documents.move_to_end(document)
        if len(self._documents) > MOST_DOCUMENTS:
            self._documents.popitem(last=False)
        return counting.report(whole, top)

    @rpc(idempotent=True)
    async def kept(self, document: Name, top: Top = 10) -> Report:
        """Tell of a document that this instance holds; `document` finds the right one."""
        whole = self._documents.get(document)
        if whole is None:
            raise UnknownDocument(f"there is no document {document!r}: add to it first")
        self._documents.move_to_end(document)
        return counting.report(whole, top)

    @on(f"{POSTED}#")
    async def posted(self, text: str, event: mesh.Event) -> None:
        """`text.posted.mail.anna` adds its text to the document `mail.anna`."""
        await self.add(event.topic.removeprefix(POSTED) or "posted", text)

"""Word counts, shared out over all instances: `mesh run services.textstats:TextStats`."""

from services.textstats.service import TextStats, UnknownDocument
from services.textstats.shapes import Counts, Progress, Report, Share, WordCount

__all__ = ["Counts", "Progress", "Report", "Share", "TextStats", "UnknownDocument", "WordCount"]

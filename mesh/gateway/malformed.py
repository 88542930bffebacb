"""Counts malformed requests instead of logging them.

Owns: keeping aiohttp's errors about malformed requests out of the log. Every port on a network is scanned; a traceback
for each probe would hide important lines, and would let anyone fill the disk.
Leaves to others: rejecting such requests (aiohttp answers 400 and closes).
"""

from __future__ import annotations

import logging
from typing import Final

from aiohttp.http_exceptions import HttpProcessingError

from mesh.gateway.ports import Recorder

_NAME: Final = "mesh.gateway.http"


class _Malformed(logging.Filter):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def filter(self, record: logging.LogRecord) -> bool:
        exc = record.exc_info[1] if record.exc_info else None
        if isinstance(exc, HttpProcessingError):
            self._recorder.counter("http_malformed_requests").value += 1
            return False
        return True


def http_logger(recorder: Recorder) -> logging.Logger:
    """The logger for aiohttp's server: it passes everything to the normal logs, except malformed requests."""
    # A separate logger for each server: two gateways in one process count separately.
    logger = logging.Logger(_NAME)
    logger.parent = logging.getLogger("mesh.gateway")
    logger.addFilter(_Malformed(recorder))
    return logger

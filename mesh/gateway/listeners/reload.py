"""Loads certificates again when their files change, and warns before they expire.

Owns: noticing changes, the metrics, the log lines. Leaves to others: loading (tls), making certificates (acme).
"""

from __future__ import annotations

from typing import Final

from mesh.clock import Clock
from mesh.gateway.listeners.tls import BadCertificate, Tls
from mesh.gateway.ports import Recorder
from mesh.telemetry.logs import get_logger

_log = get_logger(__name__)

#: How often the files are looked at. A look costs one stat(2) per file.
EVERY_S: Final = 2.0
#: A certificate that expires sooner is logged, once a day. ACME renews after two thirds of the lifetime, at 30 days.
SOON_S: Final = 14 * 86400.0
REMIND_S: Final = 86400.0


class Reloading:
    """Watches the files of one gateway.

    Args:
        clock: how time passes; `wall` is compared with the dates in certificates.
    """

    def __init__(self, tls: Tls, clock: Clock, recorder: Recorder) -> None:
        self._tls = tls
        self._clock = clock
        self._recorder = recorder
        self._loaded = self._seen = tls.signature()
        self._reminded_at: float | None = None
        recorder.gauge(
            "gateway_certificate_expires_seconds",
            lambda: tls.expires_at - clock.wall(),
            "Seconds until the first of the gateway's certificates expires; negative afterwards.",
        )

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._remind()
            await self._clock.sleep(EVERY_S)
            try:
                self.look()
            except Exception:
                # Without this, changes would go unnoticed from now on.
                _log.exception("tls.reload_failed")

    def look(self) -> bool:
        """Load the files again if they have changed since they were loaded, and not since the last look: a program that
        replaces several files has then finished.

        Returns:
            Whether new certificates are in use.
        """
        now = self._tls.signature()
        if now == self._loaded:
            self._seen = now
            return False
        if now != self._seen:
            self._seen = now
            return False
        # Not tried again until the files change once more.
        self._loaded = now
        try:
            self._tls.load()
        except BadCertificate as exc:
            self._count("failed")
            _log.error("tls.reload_failed", error=str(exc), remedy="correct the files; the old ones stay in use")
            return False
        self._count("loaded")
        _log.info(
            "tls.reloaded",
            certificates=[{"file": str(each.path), "serial": each.serial} for each in self._tls.certificates],
        )
        self._reminded_at = None
        return True

    def _count(self, result: str) -> None:
        counter = self._recorder.counter(
            "gateway_certificate_reloads", "Changed certificate files, by whether they are in use.", result=result
        )
        counter.value += 1

    def _remind(self) -> None:
        now = self._clock.now()
        if self._reminded_at is not None and now - self._reminded_at < REMIND_S:
            return
        self._reminded_at = now
        for each in self._tls.certificates:
            left_s = each.expires_at - self._clock.wall()
            if left_s < SOON_S:
                _log.warning("tls.certificate_expires", file=str(each.path), days=round(left_s / 86400, 1))

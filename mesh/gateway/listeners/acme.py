"""Obtains and renews the gateway's certificate from an ACME authority.

Owns: when to ask, which gateway of the host asks, and the delays after failures.
Leaves to others: the protocol (acme_client), the files (acme_store), loading the new certificate (reload).
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from mesh.clock import Clock
from mesh.config import Settings
from mesh.config.certificates import Certificate
from mesh.errors import MeshError
from mesh.gateway.listeners.acme_client import obtain
from mesh.gateway.listeners.acme_store import AcmeStore, Failures
from mesh.gateway.ports import Recorder
from mesh.telemetry.logs import get_logger

_log = get_logger(__name__)

#: The share of a lifetime after which a certificate is renewed, as authorities advise: 60 of 90 days.
RENEW_AFTER: Final = 2 / 3
#: Renewals are spread over this share of the lifetime, so that certificates of one day are not all renewed on one day.
JITTER: Final = 0.05
#: Delays after failures, doubled each time. Let's Encrypt allows five failed validations of a name per hour.
FIRST_DELAY_S: Final = 15 * 60.0
LONGEST_DELAY_S: Final = 24 * 3600.0
#: How often the dates are looked at.
EVERY_S: Final = 60.0


def due_at(certificate: Certificate | None, domains: list[str]) -> float:
    """When to ask for a certificate, by the wall clock; 0.0 for at once.

    The jitter follows from the serial number: all gateways of a host compute the same instant, also after a restart.
    """
    if certificate is None or set(certificate.names) != {name.lower() for name in domains}:
        return 0.0
    lifetime_s = certificate.expires_at - certificate.begins_at
    share = RENEW_AFTER - JITTER * random.Random(certificate.serial).random()
    return certificate.begins_at + share * lifetime_s


def delay_s(failures: int, chance: float) -> float:
    """How long to wait after this many failures in a row.

    Args:
        chance: from 0 to 1; the delay is spread over half of itself.
    """
    doubled_s: float = FIRST_DELAY_S * 2 ** min(failures - 1, 20)
    return min(LONGEST_DELAY_S, doubled_s) * (0.75 + chance / 2)


class Renewal:
    """Renews the certificate of one gateway.

    Args:
        clock: how time passes; `wall` is compared with the dates in certificates.
    """

    def __init__(self, settings: Settings, clock: Clock, recorder: Recorder) -> None:
        self._settings = settings
        self._clock = clock
        self._recorder = recorder
        self._store = AcmeStore(settings)

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            try:
                self._store.prepare()
                await self.look()
            except Exception:
                _log.exception("acme.failed")
            await self._clock.sleep(EVERY_S)

    async def look(self) -> bool:
        """Ask for a certificate if it is time, and no other gateway of this host is asking.

        Returns:
            Whether there is a new one.
        """
        with self._store.lock() as mine:
            if not mine:
                return False
            failures = self._store.failures()
            now = self._clock.wall()
            domains = self._settings.gateway.acme.domains
            if now < due_at(self._store.certificate(), domains) or now < failures.next_at:
                return False
            self._store.sweep()
            _log.info("acme.ordering", domains=domains, directory=self._settings.gateway.acme.directory)
            # The library blocks. The lock is held meanwhile: it is a lock of files, and no coroutine waits for it.
            working = asyncio.ensure_future(asyncio.to_thread(obtain, self._settings, self._store))
            try:
                await asyncio.shield(working)
            except asyncio.CancelledError:
                # A thread cannot be cancelled; the lock must not be given up before it ends.
                await asyncio.wait([working])
                raise
            except MeshError as exc:
                count = failures.count + 1
                wait_s = delay_s(count, random.random())
                self._store.fail(Failures(count, self._clock.wall() + wait_s))
                self._count("failed")
                _log.error("acme.order_failed", error=str(exc), failures=count, next_try_s=round(wait_s))
                return False
        self._count("issued")
        _log.info("acme.issued", domains=domains, file=str(self._store.certificate_file))
        return True

    def _count(self, result: str) -> None:
        counter = self._recorder.counter(
            "gateway_certificate_orders", "Orders to the ACME authority, by result.", result=result
        )
        counter.value += 1

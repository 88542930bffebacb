"""Obtains and renews the gateway's certificate from an ACME authority.

Owns: when to ask, which gateway of the host asks, and the delays after failures.
Leaves to others: the protocol (acme_client), the files (acme_store), loading the new certificate (reload).
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import IO, Final

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
        held = self._store.hold()
        if held is None:
            return False
        handed = False
        try:
            failures = self._store.failures()
            now = self._clock.wall()
            domains = self._settings.gateway.acme.domains
            if now < due_at(self._store.certificate(), domains) or now < failures.next_at:
                return False
            self._store.sweep()
            _log.info("acme.ordering", domains=domains, directory=self._settings.gateway.acme.directory)
            handed = True
            error = await _in_thread(lambda: self._order(failures, held))
        finally:
            if not handed:
                held.close()
        if error is not None:
            self._count("failed")
            left_s = round(self._store.failures().next_at - self._clock.wall())
            _log.error("acme.order_failed", error=str(error), failures=failures.count + 1, next_try_s=left_s)
            return False
        self._count("issued")
        _log.info("acme.issued", domains=domains, file=str(self._store.certificate_file))
        return True

    def _order(self, failures: Failures, held: IO[str]) -> MeshError | None:
        """Obtain a certificate; a failure is noted before another gateway may ask. Blocks."""
        with held:
            try:
                obtain(self._settings, self._store)
            except MeshError as exc:
                count = failures.count + 1
                self._store.fail(Failures(count, self._clock.wall() + delay_s(count, random.random())))
                return exc
        return None

    def _count(self, result: str) -> None:
        counter = self._recorder.counter(
            "gateway_certificate_orders", "Orders to the ACME authority, by result.", result=result
        )
        counter.value += 1


async def _in_thread(work: Callable[[], MeshError | None]) -> MeshError | None:
    """The result of blocking work, in a thread that does not keep the process from ending: an order may take minutes.
    (asyncio.to_thread would: the event loop joins its threads.)"""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[MeshError | None] = loop.create_future()

    def settle(result: MeshError | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    def run() -> None:
        result: MeshError | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as exc:
            error = exc
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            pass  # the gateway has ended meanwhile

    threading.Thread(target=run, name="acme", daemon=True).start()
    return await done

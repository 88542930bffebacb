"""ACME with a real authority: Pebble, the test server of Let's Encrypt, validates over HTTP and issues.

Skipped, by name, where the package pebble of Debian is missing.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import stat
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gateway_fakes import FakeNode
from gateway_front import eventually
from listener_set import Authority, free_port, served, settings_of

from mesh.clock import ManualClock
from mesh.config import Settings
from mesh.config.certificates import Certificate, acme_dir, read
from mesh.gateway.listeners.acme import FIRST_DELAY_S, JITTER, LONGEST_DELAY_S, RENEW_AFTER, Renewal, delay_s, due_at
from mesh.gateway.listeners.acme_store import AcmeStore
from mesh.gateway.listeners.reload import Reloading
from mesh.gateway.listeners.sockets import bind

#: The authority does not see which loop the gateway runs on.
pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

needs_pebble = pytest.mark.skipif(shutil.which("pebble") is None, reason="pebble is missing (apt install pebble)")


class Pebble(NamedTuple):
    """A running authority.

    Attributes:
        ca: who certifies its own HTTPS.
        http: where it sends challenges: any name is this machine.
    """

    directory: str
    ca: Path
    http: int
    management: int

    def root(self) -> str:
        """The certificate that signs what it issues."""
        context = ssl.create_default_context(cafile=str(self.ca))
        with urllib.request.urlopen(f"https://localhost:{self.management}/roots/0", context=context) as answer:
            return str(answer.read().decode())


def run_pebble(root: Path, authority: Authority, **config: Any) -> Iterator[Pebble]:
    authority.write(root / "pebble.crt", root / "pebble.key", "localhost", "127.0.0.1")
    (root / "pebble-ca.pem").write_bytes(authority.pem)
    api, management, http, names, control = (free_port() for _ in range(5))
    settings = {
        "listenAddress": f"127.0.0.1:{api}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(root / "pebble.crt"),
        "privateKey": str(root / "pebble.key"),
        "httpPort": http,
        "tlsPort": http,
        **config,
    }
    (root / "pebble.json").write_text(json.dumps({"pebble": settings}))
    dns = f"127.0.0.1:{names}"
    servers = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
    with (root / "pebble.log").open("wb") as log:
        running = [
            subprocess.Popen(
                ["pebble-challtestsrv", "-dns01", dns, "-management", f"127.0.0.1:{control}", *servers],
                stdout=log,
                stderr=log,
            ),
            subprocess.Popen(
                ["pebble", "-config", str(root / "pebble.json"), "-dnsserver", dns],
                stdout=log,
                stderr=log,
                env={"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"},
            ),
        ]
    try:
        pebble = Pebble(f"https://localhost:{api}/dir", root / "pebble-ca.pem", http, management)
        wait_for(pebble, running, root / "pebble.log")
        yield pebble
    finally:
        for each in running:
            each.kill()
            each.wait()


def wait_for(pebble: Pebble, running: list[subprocess.Popen[bytes]], log: Path) -> None:
    for _ in range(500):
        try:
            pebble.root()
            return
        except OSError:
            assert all(each.poll() is None for each in running), log.read_text()
            time.sleep(0.02)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def pebble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    yield from run_pebble(tmp_path_factory.mktemp("pebble"), Authority())


def acme_settings(
    root: Path, pebble: Pebble, names: str = '"shop.example", "www.shop.example"', more: str = ""
) -> Settings:
    return settings_of(
        root,
        f"[gateway.tls]\nredirect_port = {pebble.http}\n[gateway.acme]\ndomains = [{names}]\nagree = true\n"
        f'directory = "{pebble.directory}"\nca = "{pebble.ca}"\nemail = "ops@shop.example"\n{more}',
    )


def client_of(pebble: Pebble) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=pebble.root())


@needs_pebble
async def test_a_certificate_is_obtained_used_and_renewed(tmp_path: Path, pebble: Pebble):
    settings = acme_settings(tmp_path, pebble)
    where = acme_dir(settings)
    clock = ManualClock()
    async with served(settings) as front:
        renewal = Renewal(settings, clock, front.node.recorder)
        AcmeStore(settings).prepare()
        assert front.listeners.tls is not None
        watch = Reloading(front.listeners.tls, clock, front.node.recorder)
        # Until the first one is there, a self-signed certificate serves.
        assert (await front.ask("GET /livez", tls=unchecked())).status == 200
        assert await renewal.look() is True
        first = read(where / "certificate.pem")
        assert set(first.names) == {"shop.example", "www.shop.example"}
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in where.iterdir() if path.is_file()}
        assert {modes[name] for name in ("account.pem", "certificate.pem")} == {0o600}
        assert stat.S_IMODE(where.stat().st_mode) == 0o700
        assert list((where / "challenges").iterdir()) == []
        assert [watch.look(), watch.look()] == [False, True]
        client = client_of(pebble)
        for name in ("shop.example", "www.shop.example"):
            assert (await front.ask("GET /livez", tls=client, name=name)).status == 200
        # Nothing is due.
        clock.set_wall(first.begins_at + 60 - clock.wall())
        assert await renewal.look() is False
        account = (where / "account.pem").read_bytes()
        clock.set_wall(due_at(first, settings.gateway.acme.domains) + 1 - clock.wall())
        assert await renewal.look() is True
        assert read(where / "certificate.pem").serial != first.serial
        assert (where / "account.pem").read_bytes() == account
        assert front.count("gateway_certificate_orders", result="issued") == 2


@needs_pebble
async def test_one_of_several_gateways_asks(tmp_path: Path, pebble: Pebble):
    settings = acme_settings(tmp_path, pebble)
    AcmeStore(settings).prepare()
    async with served(settings) as front:
        each = [Renewal(settings, front.node.clock, front.node.recorder) for _ in range(3)]
        assert sorted(await asyncio.gather(*(one.look() for one in each))) == [False, False, True]
        assert front.count("gateway_certificate_orders") == 1


@needs_pebble
async def test_a_changed_list_of_names_is_a_new_order(tmp_path: Path, pebble: Pebble):
    async with served(acme_settings(tmp_path, pebble, '"shop.example"')) as front:
        AcmeStore(front.gateway.settings).prepare()
        assert await Renewal(front.gateway.settings, front.node.clock, front.node.recorder).look() is True
        changed = acme_settings(tmp_path, pebble, '"shop.example", "api.shop.example"')
        assert await Renewal(changed, front.node.clock, front.node.recorder).look() is True
    assert set(read(acme_dir(changed) / "certificate.pem").names) == {"shop.example", "api.shop.example"}


@needs_pebble
async def test_a_refused_order_is_repeated_after_growing_delays(tmp_path: Path, pebble: Pebble):
    """No gateway answers the challenge: the authority refuses. The delay outlives a restart."""
    settings = acme_settings(tmp_path, pebble)
    store, clock = AcmeStore(settings), ManualClock()
    store.prepare()
    async with served(settings_of(tmp_path, "")) as front:
        for count, low, high in ((1, 0.75, 1.25), (2, 1.5, 2.5)):
            begun_at = clock.wall()
            assert await Renewal(settings, clock, front.node.recorder).look() is False
            failures = store.failures()
            assert failures.count == count
            assert low * FIRST_DELAY_S <= failures.next_at - begun_at <= high * FIRST_DELAY_S
            assert await Renewal(settings, clock, front.node.recorder).look() is False
            assert store.failures() == failures
            clock.set_wall(failures.next_at + 1 - clock.wall())
        assert front.count("gateway_certificate_orders", result="failed") == 2
    assert list((store.dir / "challenges").iterdir()) == []
    assert not store.certificate_file.exists()


@needs_pebble
async def test_an_authority_may_demand_an_external_account(tmp_path: Path):
    key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
    (tmp_path / "eab").write_text(key)
    (tmp_path / "eab").chmod(0o600)
    demand = {"externalAccountBindingRequired": True, "externalAccountMACKeys": {"kid-1": key}}
    for pebble in run_pebble(tmp_path, Authority(), **demand):
        without = acme_settings(tmp_path, pebble)
        AcmeStore(without).prepare()
        async with served(without) as front:
            assert await Renewal(without, front.node.clock, front.node.recorder).look() is False
            assert AcmeStore(without).failures().count == 1
            (acme_dir(without) / "failures.json").unlink()
            bound = acme_settings(tmp_path, pebble, more=f'eab_key_id = "kid-1"\neab_key = "file:{tmp_path}/eab"\n')
            assert await Renewal(bound, front.node.clock, front.node.recorder).look() is True


async def test_a_gateway_that_leaves_does_not_wait_for_an_authority(tmp_path: Path):
    """Until its process ends, no other gateway asks."""
    silent = bind("127.0.0.1", 0)
    port = silent.getsockname()[1]
    settings = settings_of(
        tmp_path,
        f'[gateway.acme]\ndomains = ["shop.example"]\nagree = true\ndirectory = "https://127.0.0.1:{port}/dir"\n',
    )
    store = AcmeStore(settings)
    store.prepare()
    recorder = FakeNode().recorder
    asking = asyncio.create_task(Renewal(settings, ManualClock(), recorder).look())
    connection, _ = await asyncio.get_running_loop().sock_accept(silent)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await asking
    assert store.hold() is None
    # The thread ends when its connection does; its failure is noted all the same.
    connection.close()
    silent.close()
    await eventually(lambda: store.failures().count == 1, "the failure is noted")
    held = None
    async with asyncio.timeout(5):
        while (held := store.hold()) is None:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)
    held.close()


async def test_challenges_are_answered_over_http_and_nothing_else_is_read(tmp_path: Path):
    port = free_port()
    settings = settings_of(
        tmp_path,
        f'[gateway.tls]\nredirect_port = {port}\n[gateway.acme]\ndomains = ["shop.example"]\nagree = true\n'
        'directory = "https://localhost:1/dir"\n',
    )
    store = AcmeStore(settings)
    store.prepare()
    path = store.challenge("to-ken_1", "to-ken_1.thumb")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ValueError, match="token"):
        store.challenge("../account.pem", "x")
    async with served(settings) as front:
        for where, tls in (("redirect", None), ("public", unchecked())):
            for request, status, body in (
                # The authority may use any name that leads here.
                ("GET /.well-known/acme-challenge/to-ken_1\nHost: shop.example", 200, b"to-ken_1.thumb"),
                ("GET /.well-known/acme-challenge/none", 404, None),
                ("GET /.well-known/acme-challenge/..%2faccount.pem", 404, None),
                ("GET /.well-known/acme-challenge/", 404, None),
            ):
                answer = await front.ask(request, where, tls)  # type: ignore[arg-type]
                assert answer.status == status, (where, request)
                assert body is None or answer.body == body


def unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def test_renewals_come_after_two_thirds_of_the_lifetime_and_are_spread():
    day = 86400.0
    made = [Certificate(Path("x"), ("a.example",), 0.0, 90 * day, f"{serial:x}") for serial in range(200)]
    times = [due_at(each, ["A.example"]) for each in made]
    assert min(times) >= (RENEW_AFTER - JITTER) * 90 * day
    assert max(times) <= RENEW_AFTER * 90 * day
    assert max(times) - min(times) > 0.8 * JITTER * 90 * day
    assert times == [due_at(each, ["a.example"]) for each in made]
    assert due_at(None, ["a.example"]) == due_at(made[0], ["b.example"]) == 0.0


async def test_delays_double_up_to_a_day():
    assert [delay_s(count, 0.5) / FIRST_DELAY_S for count in (1, 2, 3)] == [1, 2, 4]
    assert delay_s(100, 0.5) == LONGEST_DELAY_S
    assert (delay_s(1, 0.0), delay_s(1, 1.0)) == (0.75 * FIRST_DELAY_S, 1.25 * FIRST_DELAY_S)

"""One copy of a program: it is in the registry exactly while it serves, and nothing of it outlives it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from program_site import Site

from mesh.discovery.http_address import META, usable
from mesh.errors import UnknownMethod
from mesh.policy.liveness import EXIT_MEMORY, EXIT_START, EXIT_UNHEALTHY


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def test_a_program_is_registered_with_its_address_and_its_environment(site: Site):
    """{port} and PORT are the port in the registry; the environment names the instance, and says where the mesh is."""
    site.write(
        'version = "7"\nenvironment = { GREETING = "at {host}:{port}", BRACES = "{a}" }\n[gateway]\nport = 18001'
    )
    copy = await site.start()
    (instance,) = await site.ready()
    address = usable(instance, site.settings.mesh.host, site.settings.mesh.run_dir)
    assert address is not None
    assert address.text == instance.meta[META]
    environment = json.loads(await site.get(instance, "/env"))
    assert environment["PORT"] == str(address.port)
    assert environment["GREETING"] == f"at 127.0.0.1:{address.port}"
    assert environment["BRACES"] == "{a}"
    assert environment["MESH_SERVICE"] == "shop"
    assert environment["MESH_INSTANCE"] == instance.id == instance.worker
    assert environment["MESH_GATEWAY"] == "http://127.0.0.1:18001"
    assert environment["MESH_CONFIG"] == str(site.root / "mesh.toml")
    assert instance.version == "7"
    assert instance.pid == copy.process.pid
    # What the program writes is in the log of the worker.
    await site.until(lambda: "served /env" in copy.log, "the program's output is in the log")


async def test_a_program_answers_as_a_worker_does_and_has_no_methods(site: Site):
    """Control methods work, so that ps, top, roll and autoscale see it; a call of a method fails with a clear code."""
    await site.start()
    (instance,) = await site.ready()
    info = await site.node.call("$worker.info", instance=instance.id)
    assert info["pid"] == instance.pid
    snapshot = await site.node.call("$worker.metrics", instance=instance.id)
    gauges = {each["name"]: each["value"] for each in snapshot["gauges"]}
    assert gauges["program_healthy"] == 1
    assert gauges["program_memory_bytes"] > 1_000_000
    with pytest.raises(UnknownMethod):
        await site.node.call("shop.buy")


async def test_a_socket_in_the_run_directory(site: Site):
    """`unix:{socket}`: the path is in SOCKET, in the registry, and gone afterwards."""
    site.write('http = "unix:{socket}"')
    copy = await site.start()
    (instance,) = await site.ready()
    address = usable(instance, site.settings.mesh.host, site.settings.mesh.run_dir)
    assert address is not None
    assert os.access(address.socket, os.F_OK)
    copy.send(signal.SIGTERM)
    assert await copy.code() == 0
    assert not os.access(address.socket, os.F_OK)


async def test_health_decides_about_the_registry(site: Site):
    """A sick program leaves the registry and comes back, as another instance, when it is well."""
    copy = await site.start()
    (first,) = await site.ready()
    sick = site.touch("sick")
    await site.ready(0)
    sick.unlink()
    (second,) = await site.ready()
    assert second.id != first.id
    assert (second.worker, second.meta) == (first.worker, first.meta)
    assert copy.process.returncode is None
    hang = site.touch("hang")
    await site.ready(0)
    hang.unlink()
    await site.ready()


async def test_a_program_that_stays_sick_is_replaced(site: Site):
    """After `health_failures` failed checks the process ends with its own exit code, even when the program hangs."""
    site.write("")
    (site.root / "mesh.toml").write_text(
        (site.root / "mesh.toml").read_text().replace("health_failures = 0", "health_failures = 3")
    )
    site.touch("stubborn")
    copy = await site.start()
    (instance,) = await site.ready()
    program = int(await site.get(instance, "/pid"))
    site.touch("hang")
    assert await copy.code() == EXIT_UNHEALTHY
    assert not alive(program)
    assert site.instances() == ()


async def test_a_program_that_never_becomes_healthy(site: Site):
    """`start_timeout` ends it; it was never registered."""
    (site.root / "mesh.toml").write_text(
        (site.root / "mesh.toml").read_text().replace("[worker]", '[worker]\nstart_timeout = "1s"')
    )
    site.touch("sick")
    copy = await site.start()
    assert await copy.code() == EXIT_START
    assert not site.node.table.known("shop")


async def test_a_program_that_ends_takes_its_process_along(site: Site):
    """The exit code is the program's own, or 128 plus the signal, so that crash loops are detected."""
    copy = await site.start()
    (instance,) = await site.ready()
    with pytest.raises(OSError):  # noqa: PT011  # whichever: there is no answer
        await site.get(instance, "/die")
    assert await copy.code() == 7
    await site.ready(0)

    copy = await site.start()
    (instance,) = await site.ready()
    os.kill(int(await site.get(instance, "/pid")), signal.SIGKILL)
    assert await copy.code() == 128 + signal.SIGKILL
    await site.ready(0)


@pytest.mark.parametrize(("command", "code"), [("no-such-program-anywhere", 127), ("./mesh.toml", 126)])
async def test_a_program_that_cannot_be_executed(site: Site, command: str, code: int):
    """The exit codes of shells, and a line in the log that names it."""
    copy = await site.start("--", command)
    assert await copy.code() == code
    assert command in copy.log


async def test_nothing_outlives_the_process_that_is_killed(site: Site):
    """kill -9 of `mesh program` ends the program: the kernel does it, without a supervisor."""
    copy = await site.start()
    (instance,) = await site.ready()
    program = int(await site.get(instance, "/pid"))
    copy.send(signal.SIGKILL)
    await copy.code()
    await site.until(lambda: not alive(program), "the program is gone")


async def test_a_stop_lets_requests_finish_and_ends_children(site: Site):
    """SIGTERM: it leaves the registry at once, the request under way is answered, then everything ends."""
    site.touch("forks")
    copy = await site.start()
    (instance,) = await site.ready()
    child = int((site.root / "child.pid").read_text())
    assert alive(child)
    slow = asyncio.create_task(site.get(instance, "/slow/1.5"))
    await site.until((site.root / "slow").exists, "the request is under way")
    copy.send(signal.SIGTERM)
    await site.ready(0)
    assert not slow.done()
    assert await slow == "/slow/1.5"
    assert await copy.code() == 0
    assert not alive(child)


async def test_a_stop_kills_what_ignores_it(site: Site):
    """After `stop_timeout` the program is killed, and the exit code says so."""
    site.touch("stubborn")
    (site.root / "mesh.toml").write_text((site.root / "mesh.toml").read_text().replace('"6s"', '"2s"'))
    copy = await site.start()
    (instance,) = await site.ready()
    program = int(await site.get(instance, "/pid"))
    copy.send(signal.SIGTERM)
    assert await copy.code() == 1
    assert not alive(program)


async def test_memory_above_the_soft_limit_replaces_the_program(site: Site):
    """`memory_soft` counts all processes of the program, and drains it."""
    copy = await site.start("--limit", "memory_soft=1000000")
    assert await copy.code() == EXIT_MEMORY
    await site.ready(0)


async def test_limits_are_those_of_the_program(site: Site):
    """Files and priority are set in the program, not in the process beside it; no signal is ignored."""
    words = "import os, resource; print('limits', resource.getrlimit(7)[0], os.nice(0))"
    copy = await site.start("--limit", "files=123", "--limit", "nice=3", "--", sys.executable, "-c", words)
    assert await copy.code() == 0
    assert f"limits 123 {os.nice(0) + 3}" in copy.log


async def test_a_port_of_another_process_is_not_registered(site: Site):
    """The program does not listen; another process listens at its port, and passes the check. It gets no requests."""
    words = "import os, time; open('port', 'w').write(os.environ['PORT']); time.sleep(600)"
    copy = await site.start("--", sys.executable, "-c", words, name="other")
    port = site.root / "port"
    await site.until(lambda: port.exists() and port.read_text(), "the port is known")
    checks = 0

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal checks
        checks += 1
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", int(port.read_text())):
        await site.until(lambda: checks >= 3, "it has been checked")
        assert not site.node.table.known("other")
        copy.send(signal.SIGTERM)
        assert await copy.code() == 0
    assert "program.ready" not in copy.log


async def test_a_program_ignores_no_signal(site: Site):
    """Python's own choices, such as to ignore SIGPIPE, are not inherited."""
    copy = await site.start("--", "sh", "-c", "grep SigIgn /proc/self/status")
    assert await copy.code() == 0
    ignored = int(copy.log.partition("SigIgn:")[2].split()[0], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGTERM - 1) | 1 << (signal.SIGINT - 1))

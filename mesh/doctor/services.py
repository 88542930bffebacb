"""Whether each service's workers could start: their classes or program, environment file and limits; and the mounts of
gateways.

Owns: trying it in a separate process, as a worker would (`mesh run --check`, `mesh program --check`, `mesh gateway
--check`), and finding out which key is at fault.
Leaves to others: the check itself (cli.run, cli.confine, gateway.app), finding the origin of an exception (cli.blame).
"""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from mesh.config import ServiceSettings, Usable
from mesh.doctor.finding import BAD, GOOD, Finding
from mesh.doctor.values import about

IMPORT_S: Final = 20.0

#: The remedy for each key of a service that prevents the start of its workers.
_MENDS: Final = {
    "class": "name one that exists",
    "command": "install that program, or correct its path",
    "env_file": "fix that file, or remove the key",
    "memory": "raise the limit, or remove the key",
    "files": "lower the limit, raise LimitNOFILE or `ulimit -Hn`, or remove the key",
    "nice": "remove the key",
}


class _Tried(NamedTuple):
    """The result of a try.

    Attributes:
        key: which of the service's keys is at fault; "" when unknown.
        words: the reason; "" when it succeeded.
    """

    key: str
    words: str


async def services(found: Usable, counts: Mapping[str, int], env: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Try each service.

    Args:
        counts: the configured number of workers of each service; the declared number when it is missing.
        env: the environment that supervisord has, or would have.
    """
    for name, service in found.settings.services.items():
        if not service.runs:
            continue
        findings = [each async for each in try_service(found, name, service, env)]
        for each in findings:
            yield each
        if not findings:
            count = counts.get(name, service.replicas)
            workers = "1 worker" if count == 1 else f"{count} workers"
            yield Finding(GOOD, f"[services.{name}]", f"{_what(service)}, {workers}")


async def mounts(found: Usable, env: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Try what the gateways are to load, mounts and authentication methods; in a process of its own, as services do.

    Args:
        env: the environment that supervisord has, or would have.
    """
    listed = list(found.settings.gateway.mounts)
    routes = [route for each in found.settings.services.values() if each.command for route in each.route]
    methods = found.settings.auth.methods
    if not listed and not routes and not methods:
        return
    tried = await _check(["gateway", "--check", "--json"], found.settings.root, env)
    if tried.words:
        mend = "correct the entry or the object that it names; until then no gateway starts (`mesh gateway --check`)"
        key, colon, what = tried.words.partition(": ")
        if match := re.match(r"(services\.[\w-]+\.route) ", tried.words):
            key, what = match[1], tried.words
        elif not colon or not key.startswith(("auth.", "gateway.")):
            key, what = "gateway.mounts" if listed else "auth", tried.words
        yield Finding(BAD, about(found, key), what, mend)
        return
    if listed:
        yield Finding(GOOD, "gateway.mounts", ", ".join(listed))
    if routes:
        yield Finding(GOOD, "routes of programs", ", ".join(routes))
    if methods:
        yield Finding(GOOD, "[auth]", ", ".join(methods))


async def try_service(
    found: Usable, name: str, service: ServiceSettings, env: Mapping[str, str]
) -> AsyncIterator[Finding]:
    """All reasons that prevent the start of its workers: each key at fault is left out of the next try."""
    options = _options(service, found.settings.root)
    env = {**env, **service.environment, "SUPERVISOR_GROUP_NAME": name}
    while True:
        tried = await _run(found, name, service, [word for words in options.values() for word in words], env)
        if tried.words and not tried.key and "memory" in options:
            # Whatever the error message: if the try succeeds without the limit, the limit is the reason.
            others = [word for key, words in options.items() if key != "memory" for word in words]
            if not (await _run(found, name, service, others, env)).words:
                tried = _Tried("memory", tried.words)
        if not tried.words:
            return
        key = tried.key or ("command" if service.command else "class")
        mend = _MENDS[key] if tried.key else f"`mesh {shlex.join(_words(name, service, []))}` shows the whole error"
        yield Finding(BAD, about(found, f"services.{name}.{key}"), tried.words, mend)
        if key not in options:
            return
        del options[key]


def _options(service: ServiceSettings, root: Path) -> dict[str, list[str]]:
    """The options of a worker's command line, by the key that they come from."""
    options = {}
    if service.env_file:
        options["env_file"] = ["--env-file", str(root / service.env_file)]
    for key, value in (("memory", service.memory_bytes), ("files", service.files), ("nice", service.nice)):
        if value:
            options[key] = ["--limit", f"{key}={value}"]
    return options


async def _run(
    found: Usable, name: str, service: ServiceSettings, options: list[str], env: Mapping[str, str]
) -> _Tried:
    return await _check(_words(name, service, ["--json", *options]), found.settings.root, env)


def _words(name: str, service: ServiceSettings, options: list[str]) -> list[str]:
    """The command of mesh that checks a service."""
    if service.command:
        return ["program", "--check", *options, name, "--", *service.command]
    return ["run", "--check", *options, "--as", name, *service.classes]


def _what(service: ServiceSettings) -> str:
    return shlex.join(service.command) if service.command else ", ".join(service.classes)


async def _check(words: list[str], root: Path, env: Mapping[str, str]) -> _Tried:
    """Run a command of mesh that only checks; the words are empty when it succeeds."""
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "mesh.cli.main", *words],
            cwd=root,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _Tried("", f"the import takes more than {IMPORT_S:g} s; move the work into `started`")
    if not done.returncode:
        return _Tried("", "")
    return _read(done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}")


def _read(said: str) -> _Tried:
    """The reason is in the last line of the output: an error of mesh in JSON, or a line about the exception."""
    last = said.splitlines()[-1]
    if last.startswith('{"error"'):
        try:
            error: dict[str, Any] = msgspec.json.decode(last)["error"]
        except (msgspec.DecodeError, KeyError):
            return _Tried("", last)
        key = error.get("details", {}).get("key") or ("class" if error.get("code") == "no_such_service" else "")
        return _Tried(key if key in _MENDS else "", str(error.get("message", "")))
    return _Tried("", last.removeprefix("mesh: "))

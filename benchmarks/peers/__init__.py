"""The contestants: one small file each, all of one shape. Those in here answer calls.

Owns: the shape, and the list of those that answer calls. `publishers` and `queues` hold those of the durable half.
Leaves to others: driving them (benchmarks.drive), their processes (benchmarks.children).

A contestant's file imports what it needs inside its functions, so that one that is not installed can still be named.
It has:
    PEER                     what it is called, how it is run, what it needs
    serve(place)             runs the answering side until its process is ended
    connect(place)           an asynchronous context that yields {"small": call, "big": call}
The Node contestant has commands of its own in place of the two functions.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.children import python

SMALL: dict[str, Any] = {"name": "x", "i": 7}
BIG = bytes(range(256)) * 4096


@dataclass(frozen=True)
class Place:
    """Where one contestant runs: a private directory for its sockets, and four free TCP ports."""

    directory: Path
    ports: tuple[int, ...]

    def ipc(self, name: str) -> str:
        """A ZeroMQ address in the private directory."""
        return f"ipc://{self.directory / name}"

    def as_argument(self) -> str:
        return json.dumps({"directory": str(self.directory), "ports": self.ports})

    @classmethod
    def from_argument(cls, text: str) -> Place:
        read = json.loads(text)
        return cls(Path(read["directory"]), tuple(read["ports"]))


@dataclass(frozen=True)
class Command:
    """A process: its name among the contestant's, its arguments, and the port it opens if it must be waited for.

    `ready_s` is how long that may take.
    """

    name: str
    arguments: list[str]
    env: dict[str, str] = field(default_factory=dict)
    port: int | None = None
    ready_s: float = 10.0


def _no_servers_of_its_own(place: Place) -> list[Command]:
    return []


@dataclass(frozen=True)
class Peer:
    """One contestant.

    Attributes:
        key: what `--only` and the JSON call it; also its module in this package.
        title: what tables and plots call it.
        how: one line for the page: transport, encoding, loop.
        modules, programs, files: what must be there; `install` is the line that brings it.
        servers: processes started before its answering side, in order.
        answering, asking: its two processes; None takes `serve` and `connect` of its module.
        uvloop: it runs on uvloop where that is installed.
        package: the distribution whose version is shown.
    """

    key: str
    title: str
    how: str
    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    install: str = ""
    servers: Callable[[Place], list[Command]] = _no_servers_of_its_own
    answering: Callable[[Place], Command] | None = None
    asking: Callable[[Place], Command] | None = None
    uvloop: bool = True
    package: str = ""

    def missing(self) -> list[str]:
        """What it needs and does not find, by name; empty when it can run."""
        return [
            *(name for name in self.modules if importlib.util.find_spec(name) is None),
            *(name for name in self.programs if shutil.which(name) is None),
            *(path.name for path in self.files if not path.exists()),
        ]

    def commands(self, place: Place) -> tuple[list[Command], Command]:
        """Its servers in order of starting, and its client."""
        where = place.as_argument()
        serve = self.answering or (lambda _: Command("server", python("benchmarks.host", "serve", self.key, where)))
        ask = self.asking or (lambda _: Command("client", python("benchmarks.host", "ask", self.key, where)))
        return [*self.servers(place), serve(place)], ask(place)


@dataclass(frozen=True)
class Roster:
    """The contestants of one part: a package with a file of its own for each.

    Attributes:
        keys: in the order of the table. The first is what all others are compared with.
    """

    package: str
    keys: tuple[str, ...]

    def module(self, key: str) -> ModuleType:
        """The file of one contestant."""
        return importlib.import_module(f"{self.package}.{key}")

    def peers(self, only: tuple[str, ...] = ()) -> list[Peer]:
        """The contestants of these keys, or all of them.

        Raises:
            KeyError: a key that is none.
        """
        for key in only:
            if key not in self.keys:
                raise KeyError(key)
        return [self.module(key).PEER for key in self.keys if not only or key in only]

    def chosen(self, only: tuple[str, ...]) -> list[Peer]:
        """Those that are wished for and take part here, and always the first; everybody where nothing is wished."""
        return self.peers(tuple(key for key in self.keys if key == self.keys[0] or key in only) if only else ())


ROSTER = Roster(
    "benchmarks.peers", ("mesh", "raw", "zmq_asyncio", "nats_py", "moleculer", "aiozmq_rpc", "zeroapi", "grpc_aio")
)
KEYS = ROSTER.keys
module = ROSTER.module
peers = ROSTER.peers

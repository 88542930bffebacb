"""The processes of a run: each started again when it ends, and killed, frozen and thawed by name."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

#: Before what has ended is started again.
PAUSE_S: Final = 0.2
#: For a process to leave after SIGTERM; then it is killed.
LEAVE_S: Final = 30.0
_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG
_libc = ctypes.CDLL(None)


class Child:
    """One process, through all its lives."""

    def __init__(self, name: str, words: Sequence[str], log: Path, where: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.kind = name.partition("-")[0]
        self.words = list(words)
        self.log = log
        self.where = where
        self.env = dict(env)
        self.wanted = True
        self.killed = False
        self.frozen = False
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.words,
                cwd=self.where,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A run that is killed leaves nothing behind.
                preexec_fn=lambda: _libc.prctl(_DEATH_SIGNAL, signal.SIGKILL),
            )

    def start_again(self) -> None:
        self.killed = self.frozen = False
        self.process = self._start()

    def tail(self) -> str:
        """The last line of its log."""
        return self.log.read_bytes()[-2000:].decode(errors="replace").strip().rpartition("\n")[2]


class Processes:
    """All of them. A thread of its own starts again what has ended."""

    def __init__(self, logs: Path, where: Path, on_exit: Callable[[str, str], object]) -> None:
        """`on_exit` is told (name, why) of what ended although nothing here had ended it."""
        self._logs = logs
        self._where = where
        self._on_exit = on_exit
        self._lock = threading.RLock()
        self.children: dict[str, Child] = {}
        self._over = threading.Event()
        # Children die with the thread that started them (PR_SET_PDEATHSIG), so that one must live as long as the run.
        self._thread = threading.Thread(target=self._watch, name="processes", daemon=True)

    def add(self, name: str, words: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Have it run. What stands before the first "-" of its name is its kind."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
        log = self._logs / f"{name}.log"
        self.children[name] = Child(name, words, log, self._where, {**clean, **(env or {})})

    def watch(self) -> None:
        """Begin to start again what ends."""
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(PAUSE_S):
            with self._lock:
                for child in self.children.values():
                    code = child.process.poll()
                    if code is None or not child.wanted:
                        continue
                    if not child.killed:
                        self._on_exit(child.name, f"exit code {code}; {child.tail()}")
                    child.start_again()

    def names(self, *kinds: str) -> list[str]:
        return [name for name, child in self.children.items() if not kinds or child.kind in kinds]

    def kill(self, name: str) -> None:
        """SIGKILL."""
        with self._lock:
            child = self.children[name]
            child.killed = True
            child.process.kill()

    def freeze(self, name: str) -> Callable[[], None]:
        """SIGSTOP; what is returned thaws it, whether or not it was killed meanwhile."""
        with self._lock:
            child = self.children[name]
            process = child.process
            process.send_signal(signal.SIGSTOP)
            child.frozen = True

        def thaw() -> None:
            with self._lock:
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                child.frozen = False

        return thaw

    def stop(self, names: Sequence[str], *, patiently: bool = True) -> None:
        """End these, and do not start them again."""
        with self._lock:
            for name in names:
                child = self.children[name]
                child.wanted = False
                if child.process.poll() is None:
                    child.process.send_signal(signal.SIGTERM if patiently else signal.SIGKILL)
                    child.process.send_signal(signal.SIGCONT)
        ends_at = time.monotonic() + LEAVE_S
        for name in names:
            process = self.children[name].process
            try:
                process.wait(max(0.0, ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._on_exit(name, f"not gone {LEAVE_S:g} s after SIGTERM")
                process.kill()
                process.wait()

    def again(self, names: Sequence[str]) -> None:
        """Start what was stopped."""
        with self._lock:
            for name in names:
                self.children[name].start_again()
                self.children[name].wanted = True

    def close(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self.stop(self.names(), patiently=False)

    def choose(self, rng: random.Random, *kinds: str) -> str:
        """One of these kinds that is not frozen; any when all are."""
        names = self.names(*kinds)
        return rng.choice([name for name in names if not self.children[name].frozen] or names)

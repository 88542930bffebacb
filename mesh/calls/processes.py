"""A pool of child processes, each of which runs one job at a time.

Owns: starting the children, giving them jobs, and knowing which job a child was running when it died.
Leaves to others: what a job is and what its answer means (offload).

One thread drives each child. `concurrent.futures.ProcessPoolExecutor` feeds all children from one queue: when one of
them dies, it cannot tell which job was running there, and fails all jobs. Here the death of a child fails only its own
job, and only if the child had reported that the job began; otherwise a new child runs the job.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from mesh.calls.exhaustion import exhausted
from mesh.errors import Unavailable
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.calls")

#: spawn, because a ZeroMQ context and an event loop do not survive a fork.
_SPAWN: Final = multiprocessing.get_context("spawn")
#: How many children in a row may die before they begin a job; then the job fails.
MOST_STARTS: Final = 3
#: Seconds from SIGTERM to SIGKILL when a child is ended.
END_S: Final = 1.0
_BEGUN: Final = b"begun"


class ChildDied(Exception):
    """The child that ran the job died; the message says how."""


class _Job:
    __slots__ = ("args", "begun", "future")

    def __init__(self, args: tuple[Any, ...], begun: Callable[[], None] | None) -> None:
        self.args = args
        self.begun = begun
        self.future: Future[Any] = Future()


class ProcessPool:
    """At most `size` children, started when they are needed.

    Args:
        run: the function that a child runs; defined at module level, as it is pickled by name.
    """

    def __init__(self, size: int, run: Callable[..., Any]) -> None:
        self._size = size
        self._run = run
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._drivers: list[threading.Thread] = []
        self._children: set[_Child] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        atexit.register(self._kill)

    @property
    def pids(self) -> list[int]:
        """The pids of the children, sorted."""
        with self._lock:
            return sorted(child.pid for child in self._children)

    def submit(self, *args: Any, begun: Callable[[], None] | None = None) -> Future[Any]:
        """Run the function with these arguments in a child. The future fails with ChildDied when the child dies.

        Args:
            begun: called in the driver's thread before the job is sent to a child.
        """
        job = _Job(args, begun)
        self._jobs.put(job)
        if not self._idle.acquire(blocking=False) and len(self._drivers) < self._size:
            driver = threading.Thread(target=self._drive, daemon=True, name=f"mesh-process-{len(self._drivers)}")
            self._drivers.append(driver)
            driver.start()
        return job.future

    def close(self) -> None:
        """End all children, including busy ones, and wait until they have ended."""
        self._closing.set()
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.future.cancel()
        for _ in self._drivers:
            self._jobs.put(None)
        with self._lock:
            children = list(self._children)
        for child in children:
            child.end()
        for driver in self._drivers:
            driver.join(END_S)
        atexit.unregister(self._kill)

    def _kill(self) -> None:
        """Kill the children at the interpreter's exit: multiprocessing would wait for them forever."""
        with self._lock:
            for child in self._children:
                child.process.kill()

    # --- in a driver's thread -----------------------------------------------------------------------------

    def _drive(self) -> None:
        child: _Child | None = None
        while (job := self._jobs.get()) is not None:
            if job.future.set_running_or_notify_cancel():
                if job.begun is not None:
                    job.begun()
                try:
                    child, answer = self._ask(job, child)
                except BaseException as exc:
                    child = None
                    job.future.set_exception(exc)
                else:
                    job.future.set_result(answer)
            del job
            self._idle.release()
        if child is not None:
            child.end()
            self._forget(child)

    def _ask(self, job: _Job, child: _Child | None) -> tuple[_Child, Any]:
        for _ in range(MOST_STARTS):
            child = child or self._start()
            begun = False
            try:
                child.connection.send(job.args)
                if child.receive() == _BEGUN:
                    begun = True
                    return child, child.receive()
            except (EOFError, OSError):
                pass
            except BaseException:
                # Half a message may have been sent (no memory for the rest): the connection cannot be used any more.
                child.end()
                self._forget(child)
                raise
            how = child.how()
            self._forget(child)
            child = None
            if self._closing.is_set():
                raise Unavailable("the worker is stopping")
            log.warning("offload.process_died", how=how, job_begun=begun)
            if begun:
                raise ChildDied(how)
        raise ChildDied(f"{MOST_STARTS} processes in a row ended before they were ready; the last one: {how}")

    def _start(self) -> _Child:
        if self._closing.is_set():
            raise Unavailable("the worker is stopping")
        try:
            child = _Child(self._run)
        except OSError as exc:
            raise Unavailable(f"no process could be started: {exc}") from exc
        with self._lock:
            self._children.add(child)
        if self._closing.is_set():
            child.end()
        return child

    def _forget(self, child: _Child) -> None:
        with self._lock:
            self._children.discard(child)
        child.close()


class _Child:
    """One process, and the connection to it."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs, run), name="mesh-offload")
        try:
            self.process.start()
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()
        self.pid = self.process.pid or 0
        self._ended = _end_of(self.process)

    def receive(self) -> Any:
        """The next message of the child.

        Raises:
            EOFError: the child died.
        """
        # The connection alone is not enough: processes that the child has forked keep its other end open.
        if self.connection not in wait([self.connection, self._ended]) and not self.connection.poll():
            raise EOFError
        return self.connection.recv()

    def how(self) -> str:
        """How the child ended, for error messages."""
        self.process.join(END_S)
        if self.process.exitcode is None:
            self.end()
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit status {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"

    def end(self) -> None:
        """Terminate the child, and kill it when it has not ended after END_S."""
        self.process.terminate()
        self.process.join(END_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(END_S)

    def close(self) -> None:
        """Close the file descriptors that belong to the child."""
        self.connection.close()
        if self._ended != self.process.sentinel:
            os.close(self._ended)


def _end_of(process: Any) -> int:
    """A descriptor that becomes readable when the process ends."""
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        # Not Linux, or an old kernel. The sentinel is a pipe: processes that the child has forked keep it open.
        return int(process.sentinel)


# --- in the child ---------------------------------------------------------------------------------------


def _serve(connection: Connection[Any, Any], run: Callable[..., Any]) -> None:
    _die_with_parent()
    while True:
        try:
            args = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_BEGUN)
        connection.send(run(*args))
        if exhausted.is_set():
            # This process is at its memory limit and would fail further jobs: a new process runs them.
            return


def _die_with_parent() -> None:
    """Exit when the parent dies: a worker that is killed by SIGKILL cannot end its children."""
    # Ctrl-C sends SIGINT to the whole foreground process group; the worker decides when its children stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="mesh-parent-watch").start()

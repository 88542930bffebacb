"""Forked children of a process that runs an event loop: detaches them from the parent's loop and signals.

Owns: the reset in the child, and ending a child that returns into its parent's loop.
Leaves to others: running the loop (cli.loop).

A loop receives signals through a descriptor that Python's C signal handler writes to. A forked child inherits both, so
that a SIGTERM for the child would reach the parent's loop, and the child would not end. Sockets and the descriptor of
`epoll` are shared as well: a child that continued in the loop would send messages on its parent's sockets.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any, Final

#: The exit code of a child that returned into the loop (EX_SOFTWARE).
RETURNED: Final = 70

_WARNING: Final = (
    b"mesh: a forked child process returned into its parent's event loop, and was ended. "
    b"End it with os._exit(), or use subprocess or multiprocessing.\n"
)


class _Guard:
    """The event loop of this process, and what a forked child knows of its parent's."""

    def __init__(self) -> None:
        self.registered = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.strayed = False
        #: In a forked child: the thread that called fork, the only one that it inherited.
        self.thread = 0
        #: Thread-local: each thread has its own signal mask, and several threads may fork at once.
        self.before = threading.local()


GUARD: Final = _Guard()


def protect(loop: asyncio.AbstractEventLoop) -> None:
    """Detach all children that this process forks from now on from `loop`. Harmless when called again."""
    GUARD.loop = loop
    GUARD.strayed = False
    if not GUARD.registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset)
        GUARD.registered = True


def release() -> None:
    """The loop has ended."""
    GUARD.loop = None


def in_forked_child() -> bool:
    """Whether this process was forked from one that ran an event loop, and has no loop of its own."""
    return GUARD.strayed


def end_forked_child(exc: BaseException | None = None) -> None:
    """End this process if it is a forked child that returned into its parent's code.

    Args:
        exc: a SystemExit sets the exit code, as if it had not been caught.
    """
    if not GUARD.strayed or _runs_its_own():
        return
    code = exc.code if isinstance(exc, SystemExit) else RETURNED
    if isinstance(exc, SystemExit) and (code is None or isinstance(code, int)):
        os._exit((code or 0) & 0xFF)
    os.write(2, _WARNING)
    os._exit(RETURNED if code is RETURNED else 1)


def _runs_its_own() -> bool:
    """Whether this code runs in a loop or a thread that the child itself started. (asyncio compares the pid, so the
    parent's loop does not count as running in a child.)"""
    return threading.get_ident() != GUARD.thread or asyncio._get_running_loop() is not None


def _block() -> None:
    """Block signals during the fork: one that the child got before `_reset` would go to the parent's loop instead."""
    if GUARD.loop is not None:
        GUARD.before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


def _unblock() -> None:
    mask = vars(GUARD.before).pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _reset() -> None:
    try:
        _forget_loop()
    finally:
        _unblock()


def _forget_loop() -> None:
    loop = GUARD.loop
    if loop is None:
        return
    GUARD.loop = None
    GUARD.strayed = True
    GUARD.thread = threading.get_ident()
    signal.set_wakeup_fd(-1)
    for number, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if callable(signal.getsignal(number)):
            signal.signal(number, default)
    _end_at_return(loop)


def _end_at_return(loop: Any) -> None:
    try:
        ready = getattr(loop, "_ready", None)
        if ready is not None:
            # Before all other callbacks that are due: they would write to the parent's sockets.
            ready.appendleft(asyncio.Handle(end_forked_child, (), loop))
        else:
            loop.call_soon(end_forked_child)
    except Exception:
        # Forked in a thread: the loop does not run in this child.
        return

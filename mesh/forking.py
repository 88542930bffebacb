"""What a forked child must not keep of the process that runs an event loop.

Owns: the reset in the child, and ending a child that returns into the loop of its parent.
Leaves to others: running the loop (cli.loop).

A loop receives signals through a descriptor that the C handler of Python writes to. A forked child inherits both, so
that a SIGTERM for the child would reach the parent's loop, and the child would not end. Sockets and the descriptor of
`epoll` are shared as well: a child that went on in the loop would answer in its parent's name.
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
    """The one loop of this process."""

    def __init__(self) -> None:
        self.registered = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.strayed = False
        #: Of a forked child: the one thread that it has of its parent's.
        self.thread = 0
        #: The signal mask is a thread's own, and several threads may fork at once.
        self.before = threading.local()


_guard: Final = _Guard()


def protect(loop: asyncio.AbstractEventLoop) -> None:
    """Let the children that this process forks from now on be ordinary processes. Harmless the second time."""
    _guard.loop = loop
    _guard.strayed = False
    if not _guard.registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset)
        _guard.registered = True


def release() -> None:
    """The loop has ended."""
    _guard.loop = None


def in_forked_child() -> bool:
    """Whether this process was forked by one that ran a loop, and has none of its own."""
    return _guard.strayed


def end_forked_child(exc: BaseException | None = None) -> None:
    """End this process, if it is such a child: with the exit code of a SystemExit, as if nothing had caught it."""
    if not _guard.strayed or _runs_its_own():
        return
    code = exc.code if isinstance(exc, SystemExit) else RETURNED
    if isinstance(exc, SystemExit) and (code is None or isinstance(code, int)):
        os._exit((code or 0) & 0xFF)
    os.write(2, _WARNING)
    os._exit(RETURNED if code is RETURNED else 1)


def _runs_its_own() -> bool:
    """Whether this is a loop, or a thread, that the child has started itself. (In a child, no loop of the parent's is
    one that runs: asyncio looks at the pid.)"""
    return threading.get_ident() != _guard.thread or asyncio._get_running_loop() is not None


def _block() -> None:
    """A signal that reached the child before `_reset` would reach the parent's loop, and be lost for the child."""
    if _guard.loop is not None:
        _guard.before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


def _unblock() -> None:
    mask = vars(_guard.before).pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _reset() -> None:
    try:
        _forget_loop()
    finally:
        _unblock()


def _forget_loop() -> None:
    loop = _guard.loop
    if loop is None:
        return
    _guard.loop = None
    _guard.strayed = True
    _guard.thread = threading.get_ident()
    signal.set_wakeup_fd(-1)
    for number, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if callable(signal.getsignal(number)):
            signal.signal(number, default)
    _end_at_return(loop)


def _end_at_return(loop: Any) -> None:
    try:
        ready = getattr(loop, "_ready", None)
        if ready is not None:
            # Before everything else that is due: those callbacks would write to the parent's sockets.
            ready.appendleft(asyncio.Handle(end_forked_child, (), loop))
        else:
            loop.call_soon(end_forked_child)
    except Exception:
        # Forked in a thread: the loop does not run in this child.
        return

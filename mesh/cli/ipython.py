"""The prompt of IPython, on the loop on which `n` is connected.

Owns: starting it. IPython runs every line, and waits for the next, on the same loop: links stay alive meanwhile.
Leaves to others: completion of remote names (complete), the connection (loop).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from IPython.core.async_helpers import get_asyncio_loop
from IPython.terminal.ipapp import TerminalIPythonApp

import mesh
from mesh.cli import exits, loop
from mesh.cli.complete import remote
from mesh.errors import MeshError


def interact(banner: Callable[[Any], str]) -> int:
    """Read and run lines until the end of input."""
    running: asyncio.AbstractEventLoop = get_asyncio_loop()  # type: ignore[no-untyped-call]
    connection = loop.connected()
    node = running.run_until_complete(connection.__aenter__())
    try:
        app: Any = TerminalIPythonApp.instance(user_ns={"n": node, "mesh": mesh, "asyncio": asyncio})
        app.display_banner = False
        app.initialize(argv=[])
        shell = app.shell
        # Make the prompt wait on the loop; otherwise the loop would not run while the prompt waits for input.
        shell.enable_gui("asyncio")
        # Jedi evaluates attributes, which costs a call; names from the registry cost nothing.
        shell.Completer.use_jedi = False
        shell.Completer.custom_matchers.append(_matcher(node, shell))
        shell.set_custom_exc((MeshError, KeyboardInterrupt), _show_error)
        shell.confirm_exit = False
        print(banner(node))  # noqa: T201
        app.start()
    finally:
        running.run_until_complete(connection.__aexit__(None, None, None))
    return exits.OK


def _matcher(node: Any, shell: Any) -> Callable[[str], list[str]]:
    def match(text: str) -> list[str]:
        completer = shell.Completer
        found = remote(node, completer.line_buffer or text)
        return found or []

    return match


def _show_error(shell: Any, kind: type[BaseException], error: BaseException, trace: Any, tb_offset: Any = None) -> None:
    # An error of a call is a normal result here: a traceback through mesh's own code would only hide it.
    print("interrupted" if kind is KeyboardInterrupt else f"{kind.__name__}: {error}")  # noqa: T201

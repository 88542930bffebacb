"""`mesh top`. Owns: the terminal, reading keys, and executing their commands. Leaves to others: the figures
(observe.board), drawing (top_view), scaling and rolling (supervision)."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from mesh.cli import exits, loop, process, setting
from mesh.cli.output import json_option, wants_json, write_json
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.cli.top_view import Order, Screen
    from mesh.config import Settings
    from mesh.observe.board import Board, Frame, Row
    from mesh.supervisord.layout import Layout

#: Escape sequences of keys that send more than one character. Source: ECMA-48, and common terminals.
_KEYS: Final = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down"}
FIRST_WORD_S: Final = 1.0
#: More lines than a terminal usually shows.
LINES: Final = 60


@click.command("top")
@click.option("--every", type=click.FloatRange(min=0.2), default=1.0, show_default=True, metavar="SECONDS")
@click.option("--once", is_flag=True, help="Print one sample as a table, and exit.")
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@json_option
def command(every: float, once: bool, conf: str | None) -> int:
    """Show the processes of this host live: calls, durations, processor, memory, and logs.

    Keys: arrows select, s sorts, / filters, g shows services or processes, l logs, + and - scale, r restarts, q quits.
    Keys that stop a process ask for confirmation first.
    In a pipe, or with --once or --json, the output is a table, or a line of JSON for each sample.

    Processes that were started by hand, without supervisor, are shown with the data of the registry.
    """
    process.quiet()
    layout, settings = setting.layout_if_any(conf), setting.settings()
    plain = once or wants_json() or not (sys.stdin.isatty() and sys.stdout.isatty())
    if plain:
        return loop.run(_print(layout, settings, every, once or not wants_json()))
    return loop.run(_Top(layout, settings, every).run())


async def _print(layout: Layout | None, settings: Settings, every: float, once: bool) -> int:
    from rich.console import Console

    from mesh.cli.top_view import Screen, table
    from mesh.config import OPERATOR
    from mesh.node.connect import connect
    from mesh.observe.board import Board

    async with connect(settings, wait_s=FIRST_WORD_S, role=OPERATOR) as node:
        board = Board(layout, settings, node)
        try:
            await board.look()
            while True:
                # Rates need two samples.
                await asyncio.sleep(every)
                frame = await board.look()
                if wants_json():
                    write_json({**frame._asdict(), "processes": [_as_data(row) for row in frame.processes]})
                else:
                    screen = Screen()
                    screen.by_process = True
                    rows = screen.rows(frame)
                    screen.selected = ""
                    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
                    console.print(table(rows, screen, console.width))
                    if frame.trouble:
                        click.echo(frame.trouble, err=True)
                if once:
                    return exits.UNAVAILABLE if frame.trouble else exits.OK
        finally:
            board.close()


def _as_data(row: Row) -> dict[str, object]:
    return {**row._asdict(), "sample": row.sample._asdict()}


class _Top:
    """One session at a terminal."""

    def __init__(self, layout: Layout | None, settings: Settings, every: float) -> None:
        from mesh.cli.top_view import Screen

        self._layout = layout
        self._settings = settings
        self._every = every
        self._screen: Screen = Screen()
        self._frame: Frame | None = None
        self._keys: asyncio.Queue[str] = asyncio.Queue()
        self._work: asyncio.Task[None] | None = None

    async def run(self) -> int:
        from rich.console import Console
        from rich.live import Live

        from mesh.cli.top_view import draw
        from mesh.config import OPERATOR
        from mesh.node.connect import connect
        from mesh.observe.board import Board

        console = Console(highlight=False)
        async with connect(self._settings, wait_s=FIRST_WORD_S, role=OPERATOR) as node:
            board = Board(self._layout, self._settings, node)
            try:
                with _raw(self._keys), Live(console=console, screen=True, auto_refresh=False) as live:
                    await self._look(board)
                    while True:
                        assert self._frame is not None
                        width, height = console.size
                        live.update(draw(self._screen, self._frame, width, height), refresh=True)
                        if not await self._next(board):
                            return exits.OK
            finally:
                board.close()
                await self._end()

    async def _next(self, board: Board) -> bool:
        """Wait for a key or for the next sample; whether to continue."""
        assert self._frame is not None
        try:
            key = await asyncio.wait_for(self._keys.get(), self._every)
        except TimeoutError:
            if not self._screen.paused:
                await self._look(board)
            return True
        order = self._screen.press(key, self._frame)
        if order is not None and order.kind == "quit":
            return False
        if order is not None:
            self._begin(order, board.counts())
        else:
            self._read_logs(board)
        return True

    async def _look(self, board: Board) -> None:
        lines = LINES if self._screen.logs != "none" else 0
        self._frame = await board.look(self._screen.log_names, lines)

    def _read_logs(self, board: Board) -> None:
        """Show the logs of a new selection at once; the figures are refreshed at the next sample."""
        assert self._frame is not None
        lines = LINES if self._screen.logs != "none" else 0
        self._frame = self._frame._replace(lines=board.read_logs(self._screen.log_names, lines))

    # --- doing --------------------------------------------------------------------------------------------

    def _begin(self, order: Order, counts: dict[str, int]) -> None:
        if self._work is not None and not self._work.done():
            self._screen.said = "wait until this has finished"
            return
        self._work = asyncio.create_task(self._do(order, counts), name="mesh.top")

    async def _do(self, order: Order, counts: dict[str, int]) -> None:
        from mesh.deploy.processes import restart
        from mesh.deploy.roll import roll
        from mesh.deploy.scale import scale

        assert order.row is not None
        if self._layout is None:
            self._screen.said = (
                "no supervisord.conf here: processes that were started by hand must be stopped and started by hand"
            )
            return
        name, group = order.row.name, order.row.group
        try:
            if order.kind == "scale":
                if group not in counts:
                    self._screen.said = f"{group} is not scaled from mesh.toml"
                    return
                wanted = max(0, counts[group] + order.change)
                self._screen.said = f"{group}: {counts[group]} → {wanted} …"
                await scale(self._layout, self._settings, {group: wanted}, tell=self._tell)
                self._screen.said = f"{group}: {wanted}"
            elif name == group and (group in counts or (counts and group in self._layout.fixed)):
                # Roll a whole service, or a program of supervisord.conf; the store, too, is replaced without a gap.
                self._screen.said = f"rolling {group} …"
                await roll(self._layout, self._settings, [group], tell=self._tell)
                self._screen.said = f"{group} was replaced"
            else:
                self._screen.said = f"restarting {name} …"
                await restart(self._layout, name)
                self._screen.said = f"{name} was restarted"
        except MeshError as exc:
            self._screen.said = str(exc).partition("\n")[0]

    def _tell(self, text: str) -> None:
        self._screen.said = text

    async def _end(self) -> None:
        """Finish what was begun: a roll that is cut off leaves a spare process behind."""
        if self._work is not None and not self._work.done():
            click.echo(f"{self._screen.said} (finishing)", err=True)
            await asyncio.gather(self._work, return_exceptions=True)


@contextmanager
def _raw(keys: asyncio.Queue[str]) -> Iterator[None]:
    """Read each key at once, without echo; the terminal is always restored afterwards."""
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    running = asyncio.get_running_loop()

    def read() -> None:
        try:
            text = os.read(fd, 1024).decode("utf-8", "replace")
        except OSError:
            text = ""
        if not text:
            keys.put_nowait("q")  # the terminal is gone
            running.remove_reader(fd)
        for key in _split(text):
            keys.put_nowait(key)

    tty.setcbreak(fd)
    running.add_reader(fd, read)
    # Redraw at once when the terminal is resized.
    running.add_signal_handler(signal.SIGWINCH, keys.put_nowait, "")
    try:
        yield
    finally:
        running.remove_reader(fd)
        running.remove_signal_handler(signal.SIGWINCH)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _split(text: str) -> Iterator[str]:
    """Split input that arrived together into single keys."""
    while text:
        sequence = next((each for each in _KEYS if text.startswith(each)), "")
        yield _KEYS[sequence] if sequence else text[0]
        text = text[len(sequence) or 1 :]

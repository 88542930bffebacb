"""docs/tutorial.md as something that can be played: its files are written, its commands run, its outputs compared.

Owns: what the fences of the document mean, running them, and which differences do not matter (normal).
Leaves to others: judging (test_tutorial). As a program it writes real outputs into the document:

    python tests/services/tutorial.py .venv/bin 8080

What a fence's words say:
    python FILE                     the whole file            python FILE append    to its end
    python FILE before TEXT         above the line with TEXT  python FILE prepend   to its beginning
    console                         commands after "$ ", each with its output
    console terminal-N              a process that goes on: "$ " starts it, "^C" interrupts it; without both, what it
                                    has said since
    pycon                           the same for the lines after ">>> " of a shell
    console skip                    for people only
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

DOCUMENT = Path(__file__).parents[2] / "docs" / "tutorial.md"
PATIENCE_S = 20.0
#: Recording: a terminal that says nothing for this long has said what it had to say.
QUIET_S = 2.0

#: Commands that only look: what they are to show may take a moment to become so, on a slow machine a long one.
_LOOKS = ("mesh ps", "supervisorctl status")

#: A worker says that it is ready, and the gateways hear of it a moment later: nobody types as fast as that.
_NOT_YET = '"code":"unknown_route"'

_FENCE = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PID = re.compile(r"(?<=process )\d+|(?<=pid )\d+|\d+(?= +RUNNING)|(?<=RUNNING) +(?:pid )?\d+")
_ACCIDENTS = (
    (re.compile(r"\d\d:\d\d:\d\d(\.\d+)?"), "TIME"),
    (re.compile(r"^Date: .*"), "Date"),
    (re.compile(r"^Content-Length: .*"), "Length"),
    (re.compile(r"\b[0-9a-f]{32}\b|\b[0-9a-f]{16}\b|\b[0-9a-f]{8}\b"), "ID"),
    (re.compile(r"(?<=in )\d+\.\d+(?= ?s)"), "SECONDS"),
    (re.compile(r"(?<=duration_ms=)\d+(\.\d+)?"), "MS"),
    (re.compile(r"(?<=RUNNING).*"), ""),
    (_PID, "PID"),
    # Caller and callee both watch the deadline; either may be the first to say so.
    (re.compile(r"stopped when its deadline of (\d+\.\d)\d* s was over"), r"no answer within \1 s"),
    (re.compile(r"─+"), "─"),
    (re.compile(r"^\s*\d+(?= \"Hello)"), "SHARE"),
    (re.compile(r"(?<=-)\d+(?=-\d+\.sock)"), "PID"),
    (re.compile(r"\s+"), " "),
)


class Step(NamedTuple):
    """One fence.

    Attributes:
        kind: "python", "ini", "toml", "console" or "pycon"; words: what follows it.
        begin, end: where its body stands in the document.
    """

    kind: str
    words: list[str]
    body: str
    begin: int
    end: int


def steps(text: str) -> list[Step]:
    """The fences that can be played, in order."""
    found = [
        Step(fence[1], (fence[2] or "").split(), fence[3], fence.start(3), fence.end(3))
        for fence in _FENCE.finditer(text)
    ]
    return [step for step in found if "skip" not in step.words]


def normal(line: str) -> str:
    """A line without what differs from one run to the next."""
    for pattern, instead in _ACCIDENTS:
        line = pattern.sub(instead, line)
    return line.strip()


def without_blanks(lines: list[str]) -> list[str]:
    return [line for line in lines if line.strip()]


class Terminal:
    """A process that goes on, on a terminal of its own."""

    def __init__(self, command: str, player: Player) -> None:
        self._player = player
        master, slave = pty.openpty()
        self._fd = master
        self._process = subprocess.Popen(
            ["bash", "-c", command if command.startswith("for ") else f"exec {command}"],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            cwd=player.directory, env=player.environment,
        )  # fmt: skip
        os.close(slave)
        self._text = ""
        self._read_to = 0

    def pump(self, seconds: float) -> bool:
        """Take what it says, waiting for at most so long; whether it said something."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # its end has closed the terminal
            data = b""
        self._text += data.decode("utf-8", "replace")
        if not data:
            time.sleep(min(seconds, 0.05))
        return bool(data)

    def unread(self) -> list[str]:
        """The complete lines since the last `taken`."""
        text = self._text[self._read_to :]
        return self._player.shown(text[: text.rfind("\n") + 1])

    def taken(self) -> None:
        """What was said so far is dealt with."""
        self._read_to = self._text.rfind("\n") + 1

    def interrupt(self) -> None:
        """Ctrl-C, to the process alone: the session is its own, so the terminal would not deliver it."""
        self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        os.close(self._fd)


class Player:
    """Plays a document in a directory.

    Attributes:
        wrong: for each output that is not as the document shows it, both.
        pids: process numbers of the document, and what they are in this run.
    """

    def __init__(self, directory: Path, binaries: Path, port: int, *, recording: bool = False) -> None:
        self.directory = directory
        self.port = port
        self.recording = recording
        self.environment = {
            "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(directory.parent),
            "LANG": "C.UTF-8",
            "COLUMNS": "118",
            "MESH_GATEWAY_PORT": str(port),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        # A terminal's curl shows no progress, one that writes into a pipe does.
        Path(directory.parent, ".curlrc").write_text("silent\nshow-error\n")
        self.wrong: list[str] = []
        self.pids: dict[str, str] = {}
        self._terminals: dict[str, Terminal] = {}

    def close(self) -> None:
        subprocess.run(
            ["mesh", "down"], cwd=self.directory, env=self.environment, capture_output=True, timeout=60, check=False
        )
        for terminal in self._terminals.values():
            terminal.close()

    def shown(self, text: str) -> list[str]:
        """What was printed, as the document shows it."""
        text = _ANSI.sub("", text).replace("\r\n", "\n")
        text = text.replace(str(self.directory), "/home/you/shop").replace(str(self.port), "8080")
        text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "vm", text)
        return [line.rstrip() for line in text.splitlines()]

    def play(self, text: str) -> str:
        """Play all steps; the document, with the outputs that came if this is a recording."""
        pieces = []
        copied = 0
        pending: dict[Path, str] = {}
        for step in steps(text):
            if step.kind in ("python", "ini", "toml"):
                path = self.directory / step.words[0]
                pending[path] = self._edited(path, pending.get(path), step)
                continue
            # At once: a watcher would start the service anew for each piece.
            for path, content in pending.items():
                path.write_text(content.replace("8080", str(self.port)))
            pending.clear()
            body = self._terminal(step) if step.words else self._commands(step)
            pieces += [text[copied : step.begin], body if self.recording else step.body]
            copied = step.end
        return "".join([*pieces, text[copied:]])

    def _edited(self, path: Path, pending: str | None, step: Step) -> str:
        before = pending if pending is not None else path.read_text() if path.exists() else ""
        match step.words[1:]:
            case []:
                return step.body
            case ["append"]:
                return before + step.body
            case ["prepend"]:
                return step.body + before
            case ["before", *words]:
                at = before.index(" ".join(words))
                begin = before.rfind("\n", 0, at) + 1
                return before[:begin] + step.body + before[begin:]
            case other:
                raise ValueError(f"tutorial: no such fence: {other}")

    # --- commands -----------------------------------------------------------------------------------------

    def _commands(self, step: Step) -> str:
        mark = "$ " if step.kind == "console" else ">>> "
        head, *parts = re.split(rf"^(?={re.escape(mark)})", step.body, flags=re.MULTILINE)
        if step.kind == "pycon":
            return head + self._shell(parts)
        told = []
        for part in parts:
            line, _, expected = part.partition("\n")
            command = self._with_pids(line.removeprefix(mark))
            actual = self._run(command)
            patience_at = time.monotonic() + PATIENCE_S
            while _too_early(command, actual) and not (self.recording or _same(expected.splitlines(), actual)):
                if time.monotonic() > patience_at:
                    break
                actual = self._run(command)
            self._compare(line, expected.splitlines(), actual)
            told.append("\n".join([mark + (command if self.recording else line[2:]), *actual]) + "\n")
        return head + "".join(told)

    def _run(self, command: str, given: str | None = None) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", command.replace("8080", str(self.port))],
            input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
            cwd=self.directory, env=self.environment,
        )  # fmt: skip
        return self.shown(done.stdout)

    def _shell(self, parts: list[str]) -> str:
        """Each line in a shell of its own: what it prints is then surely its own."""
        told = []
        for part in parts:
            line, _, expected = part.partition("\n")
            actual = without_blanks(self._run("mesh shell --plain", line.removeprefix(">>> ") + "\n"))
            self._compare(line, expected.splitlines(), actual)
            told.append("\n".join([line, *actual]) + "\n")
        return "".join(told)

    def _compare(self, where: str, expected: list[str], actual: list[str]) -> None:
        expected, actual = without_blanks(expected), without_blanks(actual)
        for one, other in zip(expected, actual, strict=False):
            # The document's process numbers stand for those of this run, in later commands as well.
            self.pids.update(zip(_pids(one), _pids(other), strict=False))
        if not _same(expected, actual):
            self.wrong.append("\n".join([where, "expected:", *expected, "but there was:", *actual]))

    def _with_pids(self, command: str) -> str:
        # Only ever a process of this run: the document's own number may be anybody's today.
        return re.sub(r"(?<=kill -9 )\d+", lambda found: self.pids[found[0]], command)

    # --- terminals ----------------------------------------------------------------------------------------

    def _terminal(self, step: Step) -> str:
        name = step.words[0]
        told = []
        for part in re.split(r"^(?=\$ |\^C)", step.body, flags=re.MULTILINE):
            lines = part.splitlines()
            first = [lines.pop(0)] if part.startswith(("$ ", "^C")) else []
            if not first and not lines and step.body:
                continue
            told += [*first, *self._next(name, "".join(first), without_blanks(lines))]
        return "\n".join(told) + "\n"

    def _next(self, name: str, first: str, expected: list[str]) -> list[str]:
        """Do what the first line says; what the terminal then shows."""
        terminal = self._terminals.get(name)
        command_counts = first.startswith("$ for ")  # and is silent until it has counted
        if first.startswith("$ "):
            if terminal is not None:
                terminal.close()
            terminal = self._terminals[name] = Terminal(first[2:].replace("8080", str(self.port)), self)
        assert terminal is not None, f"{name}: nothing was started there"
        if first == "^C":
            terminal.taken()
            terminal.interrupt()
        if command_counts:
            pass
        elif self.recording:
            while terminal.pump(QUIET_S) or (not first and not terminal.unread()):
                pass
        else:
            wanted = [normal(line) for line in expected]
            deadline_at = time.monotonic() + PATIENCE_S
            while wanted != [normal(line) for line in terminal.unread()][: len(wanted)]:
                if time.monotonic() > deadline_at:
                    break
                terminal.pump(0.2)
        actual = without_blanks(terminal.unread())
        self._compare(f"{name}: {first}", expected, actual if self.recording else actual[: len(expected)])
        terminal.taken()
        return actual


def _same(expected: list[str], actual: list[str]) -> bool:
    return [normal(line) for line in without_blanks(expected)] == [normal(line) for line in without_blanks(actual)]


def _too_early(command: str, actual: list[str]) -> bool:
    """Whether another output may come by itself."""
    return command.startswith(_LOOKS) or any(_NOT_YET in line for line in actual)


def _pids(line: str) -> list[str]:
    return [found.replace("pid", "").strip() for found in _PID.findall(line)]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def main() -> None:
    """Play the document and write what came into it."""
    binaries = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        shop = Path(directory, "shop")
        shop.mkdir()
        player = Player(shop, binaries, int(sys.argv[2]) if len(sys.argv) > 2 else free_port(), recording=True)
        try:
            DOCUMENT.write_text(player.play(DOCUMENT.read_text()))
        finally:
            player.close()
    print("\n\n".join(player.wrong) or "nothing was different")


if __name__ == "__main__":
    main()

"""What runs inside of supervisord: single processes of a group come and go, and the gateways' socket stays open.

Owns: the XML-RPC methods `mesh.…`, which supervisor lacks; and the files of a supervisord that was started by hand.
Leaves to others: deciding anything (crew, watch). What goes wrong here goes wrong in supervisord: so it is short.

supervisord loads it by [rpcinterface:mesh], supervisor's own way of adding methods. Why it is there:

- supervisor adds and removes whole groups, and restarts a group whose number of processes changes. `mesh.sync` adds and
  removes the processes in which a group differs from its file, and gives the others their new command for their next
  start (which `supervisorctl restart` after `reread` does not).
- supervisor closes the socket of an [fcgi-program] when its last process ends, so that `supervisorctl restart
  gateway:*` would refuse connections. Here it is kept open while nobody serves it, for KEEP_S: those who come wait in
  the backlog. For longer than that nobody should wait: then they are refused, as with supervisor alone.
- supervisor's stop signal is lost on a process that it started in the same moment: until `exec`, the child has
  supervisord's own handlers. It would be waited for until it is killed; here it is told again.
- supervisor starts a process that lived longer than startsecs again at once, for ever. `mesh.hold` makes it wait.
- supervisor keeps to itself which signal ended a process, and how one ended that died in its first second.
- supervisor takes the project's own path for a part of the pattern in [include]: in a directory named "shop[old]" it
  finds no program files. Here that part is escaped.
- supervisor opens its logs, its control socket and its pid file once. Deleted while it runs, they are made again (see
  runtime_files).
- supervisor ends what a process has forked only when it has to kill that process itself. Here nothing of a process
  outlives it, however it ended.
- A log has the words of earlier releases as well. `mesh.words` gives those since somebody started the process.
"""

from __future__ import annotations

import glob
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from supervisor import events
from supervisor import options as supervisor_options
from supervisor.options import split_namespec
from supervisor.states import STOPPED_STATES, ProcessStates
from supervisor.xmlrpc import Faults, RPCError

from mesh.errors import MeshError
from mesh.supervision import leftovers
from mesh.supervision.runtime_files import RuntimeFiles

#: Of the methods below; `mesh` asks for it, since a supervisord outlives the release that it was started with.
VERSION: Final = 1

#: How long a listening socket that nobody serves stays open. A restart of all gateways takes a drain and a start.
KEEP_S: Final = 15.0


#: `status` is this less the signal's number of what a signal ended.
SIGNALLED: Final = -100

#: XML has no place for control characters, and a whole answer would be lost for one.
_UNSPEAKABLE: Final = {code: 0xFFFD for code in range(32) if chr(code) not in "\t\n\r"}

#: A stop so soon after the start may have met the child before its `exec`.
EARLY_S: Final = 1.0


class Plugin:
    """The methods `mesh.…`. Their arguments and answers are plain values, as XML-RPC knows them."""

    def __init__(self, supervisord: Any) -> None:
        self._supervisord = supervisord
        #: References to listening sockets, by group, and since when nobody else has one.
        self._sockets: dict[str, Any] = {}
        self._unserved_at: dict[str, float] = {}
        #: process -> (seconds to wait before each next start, why).
        self._holds: dict[str, tuple[float, str]] = {}
        self._statuses: dict[str, int] = {}
        #: How long the log of each process was when somebody last started it.
        self._logged: dict[str, int] = {}
        #: What the kernel said of the process that is reaped at this moment: (pid, wait status).
        self._reaped: tuple[int, int] = (0, 0)
        self._waitpid = supervisord.options.waitpid
        supervisord.options.waitpid = self._reap
        #: Those that were told to stop a second time: once is enough, a worker takes the next for an order to hurry.
        self._told_again: set[int] = set()
        self._files = RuntimeFiles(supervisord, lambda: _write_programs(supervisord))
        events.subscribe(events.ProcessStateStartingEvent, self._starting)
        events.subscribe(events.ProcessStateExitedEvent, self._ended)
        events.subscribe(events.ProcessStateBackoffEvent, self._ended)
        events.subscribe(events.ProcessGroupRemovedEvent, lambda event: self._release(event.group))
        events.subscribe(events.Tick5Event, self._tick)
        events.subscribe(events.SupervisorStoppingEvent, self._stopping)

    def version(self) -> int:
        """Which of these methods there are."""
        return VERSION

    def sync(self, name: str) -> bool:
        """Make a group what its files now say, and touch nothing else.

        New processes start, those that are gone from the files are forgotten (they must have been stopped), and the
        rest run on.

        Args:
            name: the group's.
        """
        options = self._supervisord.options
        try:
            options.process_config(do_usage=False)
        except ValueError as exc:
            raise RPCError(Faults.CANT_REREAD, str(exc)) from exc
        config = next((each for each in options.process_group_configs if each.name == name), None)
        group = self._supervisord.process_groups.get(name)
        if config is not None and group is not None and _alike(group.config, config):
            _merge(group, config)
            return True
        if group is not None:
            if group.get_unstopped_processes():
                raise RPCError(Faults.STILL_RUNNING, name)
            self._supervisord.remove_process_group(name)
        if config is not None:
            self._supervisord.add_process_group(config)
        return True

    def hold(self, name: str, seconds: float, why: str) -> bool:
        """Let a process wait so long before each next start, when it ends without having been asked to.

        While it waits, supervisor shows it as BACKOFF, with `why`.

        Args:
            seconds: 0 takes it back.
        """
        _, process = self._find(name)
        if seconds > 0:
            self._holds[_name_of(process)] = (float(seconds), why)
        else:
            self._holds.pop(_name_of(process), None)
        return True

    def status(self, name: str) -> int:
        """How a process last ended unasked: its exit status, -100 less the signal's number, or -2 when nobody knows.

        (supervisor forgets it with the next start, which follows at once.)
        """
        _, process = self._find(name)
        return self._statuses.get(_name_of(process), -2)

    def words(self, name: str, most: int) -> str:
        """What a process has written since somebody last started it, when it ended and came back meanwhile as well; of
        more than `most` bytes, the end."""
        _, process = self._find(name)
        path = _log_of(process)
        try:
            with open(path, "rb") as log:
                size = log.seek(0, os.SEEK_END)
                begun = self._logged.get(_name_of(process), 0)
                # It was rotated in between: what there is has been written since.
                log.seek(max(begun if begun <= size else 0, size - int(most)))
                return log.read().decode("utf-8", "replace").translate(_UNSPEAKABLE)
        except (OSError, TypeError):
            return ""

    def _find(self, name: str) -> tuple[Any, Any]:
        group_name, process_name = split_namespec(name)
        group = self._supervisord.process_groups.get(group_name)
        process = group.processes.get(process_name) if group is not None else None
        if process is None:
            raise RPCError(Faults.BAD_NAME, name)
        return group, process

    # --- what supervisord tells ---------------------------------------------------------------------------

    def _reap(self) -> Any:
        found = self._waitpid()
        if found[0]:
            self._reaped = found
            self._end_leftovers(found[0])
        return found

    def _end_leftovers(self, pid: int) -> None:
        """Before anything starts in the place of what has just ended: nothing of it must run beside its successor."""
        options = self._supervisord.options
        try:
            process = options.pidhistory.get(pid)
            if process is None:
                return
            marks = {
                "SUPERVISOR_PROCESS_NAME": process.config.name,
                "SUPERVISOR_GROUP_NAME": process.group.config.name,
                "SUPERVISOR_SERVER_URL": process.config.serverurl or options.serverurl or "",
            }
            ended = leftovers.end(pid, marks, spare=[each for each in options.pidhistory if each != pid])
            if ended:
                options.logger.info(f"ended what {process.config.name} has left behind: {ended}")
        except Exception as exc:
            # An error here would end supervisord, and everything with it.
            options.logger.warn(f"what process {pid} has left behind was not ended: {exc!r}")

    def _status_of(self, process: Any) -> int:
        pid, status = self._reaped
        if pid != process.pid:
            return -2
        return SIGNALLED - os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)

    def _ended(self, event: Any) -> None:
        process = event.process
        self._statuses[_name_of(process)] = self._status_of(process)
        hold = self._holds.get(_name_of(process))
        if hold is None or not process.config.autorestart:
            return
        seconds, why = hold
        if process.state == ProcessStates.EXITED:
            # From here on it goes the way of one that did not come up: BACKOFF, and a new try at `delay`.
            process.state = ProcessStates.BACKOFF
        process.delay = time.time() + seconds
        # supervisord takes a delay beyond so many seconds for a clock that was turned back, and gives up beyond
        # startretries: a hold never leads there.
        process.backoff = min(math.ceil(seconds), process.config.startretries)
        process.spawnerr = why

    def _starting(self, event: Any) -> None:
        self._restore(lambda: self._files.prepare(event.process))
        if event.from_state not in (ProcessStates.EXITED, ProcessStates.BACKOFF):
            try:
                self._logged[_name_of(event.process)] = os.path.getsize(_log_of(event.process))
            except (OSError, TypeError):
                self._logged.pop(_name_of(event.process), None)
        group = event.process.group
        if hasattr(group, "socket_manager") and group.config.name not in self._sockets:
            self._sockets[group.config.name] = group.socket_manager.get_socket()

    def _restore(self, step: Callable[[], None]) -> None:
        # An exception here would end supervisord: a full disk, for instance, must not.
        try:
            step()
        except (OSError, MeshError) as exc:
            self._supervisord.options.logger.warn(f"a file or directory that was deleted cannot be made again: {exc}")

    def _tick(self, event: Any) -> None:
        self._restore(self._files.check)
        self._close_unserved()
        groups = self._supervisord.process_groups.values()
        processes = [process for group in groups for process in group.processes.values()]
        stopping = [process for process in processes if process.state == ProcessStates.STOPPING]
        self._told_again &= {process.pid for process in stopping}
        for process in stopping:
            if process.pid not in self._told_again:
                self._tell_again(process)

    def _tell_again(self, process: Any) -> None:
        asked_at = process.delay - process.config.stopwaitsecs
        if asked_at - process.laststart < EARLY_S:
            self._told_again.add(process.pid)
            self._supervisord.options.logger.info(f"telling {process.config.name} again to stop")
            try:
                self._supervisord.options.kill(process.pid, process.config.stopsignal)
            except OSError:
                pass  # it has just ended

    def _close_unserved(self) -> None:
        for name in list(self._sockets):
            group = self._supervisord.process_groups[name]
            if any(process.pid for process in group.processes.values()):
                self._unserved_at.pop(name, None)
            elif time.monotonic() - self._unserved_at.setdefault(name, time.monotonic()) >= KEEP_S:
                self._release(name)

    def _stopping(self, event: Any) -> None:
        # At a reload supervisord closes all files by number before it starts anew: nothing must be kept across it.
        for name in list(self._sockets):
            self._release(name)

    def _release(self, name: str) -> None:
        # Letting go of a reference is what closes the socket, if it was the last.
        self._sockets.pop(name, None)
        self._unserved_at.pop(name, None)


def _alike(old: Any, new: Any) -> bool:
    """Whether the processes of one may go on under the other: a socket is as old as its group."""
    return type(old) is type(new) and getattr(old, "socket_config", None) == getattr(new, "socket_config", None)


def _merge(group: Any, config: Any) -> None:
    names = {each.name for each in config.process_configs}
    leaving = [name for name in group.processes if name not in names]
    for name in leaving:
        if group.processes[name].get_state() not in STOPPED_STATES:
            raise RPCError(Faults.STILL_RUNNING, f"{config.name}:{name}")
    for name in leaving:
        del group.processes[name]
    config.after_setuid()
    for each in config.process_configs:
        process = group.processes.get(each.name)
        if process is None:
            group.processes[each.name] = each.make_process(group)
        else:
            process.config = each
    group.config = config


def _log_of(process: Any) -> Any:
    """The path of its log; None when it has none. An event listener's standard output is no log."""
    return process.config.stdout_logfile or process.config.stderr_logfile


def _name_of(process: Any) -> str:
    return f"{process.group.config.name}:{process.config.name}"


def make(supervisord: Any, **_: str) -> Plugin:
    """What [rpcinterface:mesh] names. Writes the program files, so that a supervisord which was started by hand runs
    what mesh.toml says, and takes them in before anything has started."""
    try:
        _take_in(supervisord)
    except MeshError as exc:
        # supervisord itself would only say that it could not make this interface.
        sys.stderr.write(f"Error: {exc}\n")
        raise
    return Plugin(supervisord)


class _Glob:
    """The module `glob` as supervisor reads [include] with it, but that the project's path means itself."""

    def __init__(self, root: Path) -> None:
        self._root = f"{root}{os.sep}"

    def glob(self, pattern: str) -> list[str]:
        if pattern.startswith(self._root):
            pattern = glob.escape(self._root) + pattern.removeprefix(self._root)
        return glob.glob(pattern)


def _roster(layout: Any) -> Any:
    from mesh.config import FILE_NAME, FILE_VARIABLE, load
    from mesh.supervision.roster import Roster

    own = layout.root / FILE_NAME
    named = FILE_VARIABLE in os.environ or not own.is_file()
    return Roster(layout, load(None if named else own))


def _write_programs(supervisord: Any) -> None:
    """Write the program files again while everything runs: as many copies as there are."""
    from mesh.supervision import layout as layouts

    roster = _roster(layouts.read(Path(supervisord.options.configfile)))
    for name, group in supervisord.process_groups.items():
        if name in roster.roles:
            roster.choose(name, len(group.processes))
    roster.refresh()


def _take_in(supervisord: Any) -> None:
    # Here, not above: what is needed once shall not stay in the way of an import error's message.
    from mesh.supervision import layout as layouts

    options = supervisord.options
    layout = layouts.read(Path(options.configfile))
    # Here and not as environment=PATH="…:%(ENV_PATH)s", which grows at every reread: to supervisor every program has
    # then changed, and `supervisorctl update` restarts them all.
    first = [str(layout.root / ".venv" / "bin"), str(Path(sys.executable).parent)]
    rest = [each for each in os.environ.get("PATH", os.defpath).split(os.pathsep) if each not in first]
    os.environ["PATH"] = os.pathsep.join([*first, *rest])
    _roster(layout).refresh()
    supervisor_options.glob = _Glob(layout.root)
    options.process_config(do_usage=False)
    new = {config.name: config for config in options.process_group_configs}
    for name, group in list(supervisord.process_groups.items()):
        if group.config != new.get(name):
            supervisord.remove_process_group(name)
    for config in new.values():
        supervisord.add_process_group(config)

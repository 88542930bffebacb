"""The plugin inside supervisord: it adds and removes single processes of a group, and keeps the gateways' socket open.

Owns: the XML-RPC methods `mesh.…`, which supervisor lacks; and the files of a supervisord that was started by hand.
Leaves to others: all decisions (processes, watch). An error here is an error in supervisord: so this module is short.

supervisord loads it by [rpcinterface:mesh], supervisor's own way of adding methods. Its reasons:

- supervisor adds and removes whole groups, and restarts a group when its number of processes changes. `mesh.sync` adds
  and removes the processes in which a group differs from its file, and sets the new command of the others for their
  next start (which `supervisorctl restart` after `reread` does not).
- supervisor closes the socket of an [fcgi-program] when its last process ends, so that `supervisorctl restart
  gateway:*` would refuse connections. The plugin keeps an unserved socket open for KEEP_S: new connections wait in the
  backlog. After that they are refused, as with supervisor alone.
- supervisor's stop signal is lost when the process was started in the same moment: until `exec`, the child has
  supervisord's own handlers. supervisor would wait until it kills the process; the plugin repeats the signal.
- supervisor restarts a process that lived longer than startsecs at once, for ever. `mesh.hold` delays the restart.
- supervisor does not report which signal ended a process, or how a process ended that died in its first second.
- supervisor treats the project's own path as part of the pattern in [include]: in a directory named "shop[old]" it
  finds no program files. The plugin escapes the path.
- supervisor opens its logs, its control socket and its pid file once. The plugin restores them when they are deleted
  (see runtime_files).
- supervisor ends the children of a process only when it has to kill that process itself. With the plugin, no child
  outlives its process, however it ended.
- A log also contains lines of earlier releases. `mesh.words` returns those since the last requested start.
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
from mesh.supervisord import leftovers
from mesh.supervisord.runtime_files import RuntimeFiles

#: The version of the methods below; `mesh` checks it, as a supervisord outlives the release that it was started with.
VERSION: Final = 1

#: How long an unserved listening socket stays open. A restart of all gateways takes a drain and a start.
KEEP_S: Final = 15.0


#: For a process that a signal ended, `status` is this minus the number of the signal.
SIGNALLED: Final = -100

#: XML does not allow control characters: a single one would make a whole answer invalid.
_UNSPEAKABLE: Final = {code: 0xFFFD for code in range(32) if chr(code) not in "\t\n\r"}

#: A stop signal so soon after the start may have reached the child before its `exec`.
EARLY_S: Final = 1.0


class Plugin:
    """The methods `mesh.…`. Their arguments and answers are plain values that XML-RPC supports."""

    def __init__(self, supervisord: Any) -> None:
        self._supervisord = supervisord
        #: References to listening sockets, by group, and since when no process uses the socket.
        self._sockets: dict[str, Any] = {}
        self._unserved_at: dict[str, float] = {}
        #: process -> (seconds to wait before each next start, why).
        self._holds: dict[str, tuple[float, str]] = {}
        self._statuses: dict[str, int] = {}
        #: The length of each process's log at its last requested start.
        self._logged: dict[str, int] = {}
        #: The process that is currently being reaped: (pid, wait status).
        self._reaped: tuple[int, int] = (0, 0)
        self._waitpid = supervisord.options.waitpid
        supervisord.options.waitpid = self._reap
        #: The processes that got the stop signal again: only once, because a further signal ends a worker at once.
        self._told_again: set[int] = set()
        self._files = RuntimeFiles(supervisord, lambda: _write_programs(supervisord))
        events.subscribe(events.ProcessStateStartingEvent, self._starting)
        events.subscribe(events.ProcessStateExitedEvent, self._ended)
        events.subscribe(events.ProcessStateBackoffEvent, self._ended)
        events.subscribe(events.ProcessGroupRemovedEvent, lambda event: self._release(event.group))
        events.subscribe(events.Tick5Event, self._tick)
        events.subscribe(events.SupervisorStoppingEvent, self._stopping)

    def version(self) -> int:
        """The version of these methods."""
        return VERSION

    def sync(self, name: str) -> bool:
        """Update a group to its current files, and touch nothing else.

        New processes start, those without a file are removed (they must have been stopped), and the others run on.

        Args:
            name: of the group.
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
        """Delay each next start of a process by `seconds` when it ends unexpectedly.

        While it waits, supervisor shows it as BACKOFF, with `why`.

        Args:
            seconds: 0 ends the delay.
        """
        _, process = self._find(name)
        if seconds > 0:
            self._holds[_name_of(process)] = (float(seconds), why)
        else:
            self._holds.pop(_name_of(process), None)
        return True

    def status(self, name: str) -> int:
        """How a process last ended unexpectedly: its exit status, -100 minus the signal's number, or -2 if unknown.

        (supervisor itself discards this at the next start, which follows at once.)
        """
        _, process = self._find(name)
        return self._statuses.get(_name_of(process), -2)

    def words(self, name: str, most: int) -> str:
        """The log of a process since its last requested start, including automatic restarts; the last `most` bytes."""
        _, process = self._find(name)
        path = _log_of(process)
        try:
            with open(path, "rb") as log:
                size = log.seek(0, os.SEEK_END)
                begun = self._logged.get(_name_of(process), 0)
                # If it was rotated meanwhile, everything in it has been written since.
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
        """End the children of a process that has just ended, before its successor starts beside them."""
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
                options.logger.info(f"ended processes that {process.config.name} left running: {ended}")
        except Exception as exc:
            # An error here would end supervisord and all its processes.
            options.logger.warn(f"processes that pid {pid} left running could not be ended: {exc!r}")

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
            # From here on, treat it like a process that failed to start: BACKOFF, and a new try at `delay`.
            process.state = ProcessStates.BACKOFF
        process.delay = time.time() + seconds
        # supervisord mistakes a delay longer than `backoff` seconds for a clock that was set back, and gives up when
        # `backoff` exceeds startretries: a hold must cause neither.
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
            self._supervisord.options.logger.warn(f"a deleted file or directory cannot be created again: {exc}")

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
            self._supervisord.options.logger.info(f"sent the stop signal to {process.config.name} again")
            try:
                self._supervisord.options.kill(process.pid, process.config.stopsignal)
            except OSError:
                pass  # the process has just ended

    def _close_unserved(self) -> None:
        for name in list(self._sockets):
            group = self._supervisord.process_groups[name]
            if any(process.pid for process in group.processes.values()):
                self._unserved_at.pop(name, None)
            elif time.monotonic() - self._unserved_at.setdefault(name, time.monotonic()) >= KEEP_S:
                self._release(name)

    def _stopping(self, event: Any) -> None:
        # At a reload supervisord closes all files by number before it starts again: keep no socket across it.
        for name in list(self._sockets):
            self._release(name)

    def _release(self, name: str) -> None:
        # Dropping the last reference closes the socket.
        self._sockets.pop(name, None)
        self._unserved_at.pop(name, None)


def _alike(old: Any, new: Any) -> bool:
    """Whether the processes of one group config may continue under the other: the socket belongs to the group."""
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
    """The path of a process's log; None when it has none. The standard output of an event listener is not a log."""
    return process.config.stdout_logfile or process.config.stderr_logfile


def _name_of(process: Any) -> str:
    return f"{process.group.config.name}:{process.config.name}"


def make(supervisord: Any, **_: str) -> Plugin:
    """The factory that [rpcinterface:mesh] names. Writes the program files and loads them before any process starts, so
    that a supervisord which was started by hand runs the services of mesh.toml."""
    try:
        _take_in(supervisord)
    except MeshError as exc:
        # supervisord itself would only report that it could not make this interface.
        sys.stderr.write(f"Error: {exc}\n")
        raise
    return Plugin(supervisord)


class _Glob:
    """Replaces the module `glob` when supervisor reads [include]; it treats the project's path literally."""

    def __init__(self, root: Path) -> None:
        self._root = f"{root}{os.sep}"

    def glob(self, pattern: str) -> list[str]:
        if pattern.startswith(self._root):
            pattern = glob.escape(self._root) + pattern.removeprefix(self._root)
        return glob.glob(pattern)


def _roster(layout: Any) -> Any:
    from mesh.config import FILE_NAME, FILE_VARIABLE, load
    from mesh.supervisord.roster import Roster

    own = layout.root / FILE_NAME
    named = FILE_VARIABLE in os.environ or not own.is_file()
    return Roster(layout, load(None if named else own))


def _write_programs(supervisord: Any) -> None:
    """Write the program files again while everything runs, for the copies that exist."""
    from mesh.supervisord import layout as layouts

    roster = _roster(layouts.read(Path(supervisord.options.configfile)))
    for name, group in supervisord.process_groups.items():
        if name in roster.roles:
            roster.choose(name, len(group.processes))
    roster.refresh()


def _take_in(supervisord: Any) -> None:
    # Imported here: it is needed only once, and an import error here has a clear message.
    from mesh.supervisord import layout as layouts

    options = supervisord.options
    layout = layouts.read(Path(options.configfile))
    # Not as environment=PATH="…:%(ENV_PATH)s", which grows at every reread: supervisor would treat every program as
    # changed, and `supervisorctl update` would restart them all.
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

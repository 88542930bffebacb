"""Metrics of supervisor's processes: which run, how often and how they ended, how many are wanted.

`mesh watch` keeps them and publishes them in the run directory, for the gateway's page.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from mesh.errors import MeshError
from mesh.supervisord.control import RUNNING, Control
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.telemetry.published import publish

log = get_logger("mesh.watch")

ROLE = "watch"


class WatchMetrics:
    """The metrics of all processes of one supervisord.

    Args:
        wanted: the wanted number of copies of each service.
        identity: of this watch, unique among the running processes.
    """

    def __init__(
        self, control: Control, run_dir: Path, wanted: Callable[[], Mapping[str, int]], identity: str = ROLE
    ) -> None:
        self.recorder = Recorder()
        self._control = control
        self._run_dir = run_dir
        self._wanted = wanted
        self._identity = identity
        #: process → 1 when it runs, and service → its copies; replaced as a whole at each update.
        self._running: dict[str, int] = {}
        self._replicas: dict[str, tuple[int, int]] = {}
        self._looping: Collection[str] = ()
        self._gauged: set[tuple[str, str]] = set()
        self._failed = False

    def started(self, process: str) -> None:
        """Count a start of a process by supervisor."""
        self._count("supervised_starts", "Starts of a process by supervisor.", process)

    def ended(self, process: str, how: str) -> None:
        """Count a process that ended unexpectedly; `how`: "exit status 1", "killed by SIGKILL", ""."""
        self._count("supervised_failures", "Ends of a process that no command asked for, by cause.", process, how=how)

    def look(self, looping: Collection[str]) -> None:
        """Update the metrics of all processes, and publish them.

        Args:
            looping: the processes in a crash loop.
        """
        try:
            processes = self._control.processes()
        except MeshError:
            return  # supervisord is stopping; the published metrics expire by themselves
        self._looping = looping
        self._running = {each.name: int(each.state == RUNNING) for each in processes}
        wanted = self._wanted()
        running: dict[str, int] = {}
        for each in processes:
            running[each.program] = running.get(each.program, 0) + (each.state == RUNNING)
        self._replicas = {name: (count, running.get(name, 0)) for name, count in wanted.items()}
        self._declare()
        try:
            publish(self._run_dir, ROLE, self._identity, self.recorder.snapshot())
            self._failed = False
        except OSError as exc:
            if not self._failed:
                log.warning("metrics.publish_failed", error=str(exc))
            self._failed = True

    def _count(self, name: str, help: str, process: str, **labels: str) -> None:
        service = process.partition(":")[0]
        self.recorder.counter(name, help, process=process, service=service, **labels).add()

    def _declare(self) -> None:
        """Add gauges for new processes. Gauges of removed processes stay, with the value 0."""
        for process in self._running:
            if ("", process) not in self._gauged:
                self._gauged.add(("", process))
                labels = {"process": process, "service": process.partition(":")[0]}
                self.recorder.gauge(
                    "supervised_up",
                    lambda process=process: self._running.get(process, 0),  # type: ignore[misc]
                    "Whether supervisor shows the process as RUNNING.",
                    **labels,
                )
                self.recorder.gauge(
                    "supervised_crash_loop",
                    lambda process=process: process in self._looping,  # type: ignore[misc]
                    "Whether the process is in a crash loop, and waits before each further start.",
                    **labels,
                )
        for service in self._replicas:
            if ("replicas", service) not in self._gauged:
                self._gauged.add(("replicas", service))
                # They belong to no single process: without an empty label they would have the name of the watch.
                labels = {"service": service, "process": ""}
                self.recorder.gauge(
                    "replicas_wanted",
                    lambda service=service: self._replicas.get(service, (0, 0))[0],  # type: ignore[misc]
                    "Copies of a service that mesh.toml, `mesh scale` or autoscaling ask for.",
                    **labels,
                )
                self.recorder.gauge(
                    "replicas_running",
                    lambda service=service: self._replicas.get(service, (0, 0))[1],  # type: ignore[misc]
                    "Copies of a service that supervisor shows as RUNNING.",
                    **labels,
                )

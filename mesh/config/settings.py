"""The tree of settings: every key with its default, its kind and a one-line description.

Owns: the types and the defaults. An attribute has its unit in its name (`timeout_s`); the key in the file has not,
because the value contains the unit: `timeout = "10s"`.
Leaves to others: the syntax of values (config.values), and reading file, environment and flags (config.load).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Struct, field
from msgspec.structs import force_setattr

from mesh.config.access import AccessSettings
from mesh.config.edge_auth import AuthSettings
from mesh.config.edge_listeners import ListenerSettings
from mesh.config.edge_programs import ProgramSettings
from mesh.config.edge_protect import CompressionSettings, CorsSettings, HeaderSettings
from mesh.config.edge_proxy import PROXIES, ProxySettings
from mesh.config.edge_rates import LimitSettings
from mesh.config.edge_static import STATICS, StaticSettings
from mesh.config.edge_websocket import WebSocketSettings
from mesh.config.policies import PolicySettings
from mesh.config.secrets import Secret
from mesh.config.values import (
    ADDRESS,
    BIND,
    DURATION,
    DURATION_OR_ZERO,
    ENDPOINTS,
    ENGINE,
    FLAG,
    PATH,
    PATH_OR_NONE,
    PORT,
    SECRET,
    SIZE,
    TABLE,
    TEXT,
    TEXTS,
    choice,
    number,
    whole,
)

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]
RpcMode = Literal["exposed", "all", "off"]
AccessLog = Literal["off", "json", "combined"]


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


class MeshSettings(Struct, frozen=True, kw_only=True):
    """[mesh]: what all processes of one mesh share."""

    name: Annotated[str, TEXT, "the mesh's name, in logs and on pages"] = "mesh"
    run_dir: Annotated[Path, PATH, "sockets and pid files; accessible to this user only"] = field(
        default_factory=lambda: Path.cwd() / "run"
    )
    log_dir: Annotated[Path, PATH, "log files of supervised processes"] = field(
        default_factory=lambda: Path.cwd() / "logs"
    )
    host: Annotated[str, TEXT, "this machine's name in the registry"] = field(default_factory=socket.gethostname)
    bind: Annotated[str, BIND, "where workers listen: in run_dir, or on a network address"] = "ipc"
    advertise: Annotated[
        str, ADDRESS, "the address to publish to other processes, if it differs from the one listened on"
    ] = ""
    hubs: Annotated[list[str], ENDPOINTS, "every hub; workers register with all of them"] = []
    services: Annotated[list[str], TEXTS, "services that `mesh run` runs without arguments"] = []

    def __post_init__(self) -> None:
        if not self.hubs:
            force_setattr(self, "hubs", [f"ipc://{self.run_dir}/hub.sock"])


class CallSettings(Struct, frozen=True, kw_only=True):
    """[calls]: deadlines, limits and retries of calls."""

    timeout_s: Annotated[float, DURATION, "the deadline of a call without one"] = field(default=10.0, name="timeout")
    stream_timeout_s: Annotated[float, DURATION, "the deadline of a stream without one"] = field(
        default=3600.0, name="stream_timeout"
    )
    credit: Annotated[int, whole(1), "concurrent calls on one link"] = 4096
    queue: Annotated[int, whole(0), "calls of one service that may queue in a worker"] = 1024
    concurrency: Annotated[int, whole(1), "calls of one service that a worker runs concurrently"] = 4096
    attempts: Annotated[int, whole(1, 100), "attempts of an idempotent call, including the first"] = 3
    retry_ratio: Annotated[float, number(0, 1), "retries allowed, as a share of calls"] = 0.2
    retry_reserve: Annotated[int, whole(0), "retries per second that are always allowed"] = 100
    prefer_local: Annotated[bool, FLAG, "prefer instances on this host while they are healthy"] = True
    wait_s: Annotated[float, DURATION, "how long a call waits for a service without an instance"] = field(
        default=3.0, name="wait"
    )
    wait_limit: Annotated[int, whole(0), "calls that may wait for an instance"] = 1024
    max_body_bytes: Annotated[int, SIZE, "the largest body of a call or a reply"] = field(
        default=64 * 2**20, name="max_body"
    )
    traceback_on_wire: Annotated[bool, FLAG, "send a handler's traceback to the caller"] = False
    check_results: Annotated[bool, FLAG, "check the type of a handler's result against its annotation"] = True


class LinkSettings(Struct, frozen=True, kw_only=True):
    """[links]: how a dead connection is detected."""

    heartbeat_s: Annotated[float, DURATION, "interval of libzmq's pings to the peer"] = field(
        default=1.0, name="heartbeat"
    )
    heartbeat_timeout_s: Annotated[float, DURATION, "silence after which a peer counts as lost"] = field(
        default=3.0, name="heartbeat_timeout"
    )
    connect_timeout_s: Annotated[float, DURATION, "how long connecting a link may take"] = field(
        default=2.0, name="connect_timeout"
    )


class DiscoverySettings(Struct, frozen=True, kw_only=True):
    """[discovery]: leases at the hub."""

    lease_s: Annotated[float, DURATION, "an instance is removed when its lease was not renewed for this long"] = field(
        default=5.0, name="lease"
    )
    renew_s: Annotated[float, DURATION, "how often an instance renews its lease"] = field(default=1.0, name="renew")
    record_bytes: Annotated[
        int, SIZE, "the largest record of a service with its methods; must be equal on hubs and workers"
    ] = field(default=2 * 2**20, name="max_record")


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """[worker]: start, liveness and stop of a worker process."""

    stop_timeout_s: Annotated[float, DURATION, "how long a stopping worker may take to drain"] = field(
        default=30.0, name="stop_timeout"
    )
    start_timeout_s: Annotated[
        float, DURATION_OR_ZERO, "how long imports, and each `started`, may take before the worker is replaced"
    ] = field(default=120.0, name="start_timeout")
    liveness_s: Annotated[
        float, DURATION_OR_ZERO, "how long a worker's event loop may be blocked before it is replaced"
    ] = field(default=30.0, name="liveness")
    lag_warning_s: Annotated[float, DURATION_OR_ZERO, "longer blocks of the event loop are logged with their stack"] = (
        field(default=0.1, name="lag_warning")
    )
    processes: Annotated[int, whole(1, 1024), 'processes for offload="process"'] = field(default_factory=cores)
    threads: Annotated[int, whole(1, 1024), 'threads for offload="thread"'] = 8


class GatewaySettings(ListenerSettings, frozen=True, kw_only=True):
    """[gateway]: the HTTP front end."""

    host: Annotated[str, TEXT, "the address that the gateway listens on"] = "127.0.0.1"
    port: Annotated[int, PORT, "the port that the gateway listens on"] = 8080
    max_body_bytes: Annotated[int, SIZE, "the largest request body"] = field(default=16 * 2**20, name="max_body")
    timeout_s: Annotated[float, DURATION, "the deadline of a request without X-Request-Timeout"] = field(
        default=10.0, name="timeout"
    )
    drain_s: Annotated[float, DURATION, "how long a stopping gateway may take to drain"] = field(
        default=5.0, name="drain"
    )
    replicas: Annotated[int, whole(0, 1024), "gateways that supervisor runs, on one listening socket"] = 2
    hosts: Annotated[
        list[str], TEXTS, 'additional host names to accept, such as "shop.example" or "*.shop.example"'
    ] = []
    origins: Annotated[
        list[str], TEXTS, 'origins of web pages that may send requests, such as "https://app.example"'
    ] = []
    rpc: Annotated[
        RpcMode, choice("exposed", "all", "off"), 'what /rpc and /tasks may call; "all" is for development'
    ] = "exposed"
    debug: Annotated[bool, FLAG, "send the text of unexpected errors to clients; for development"] = False
    max_body_total_bytes: Annotated[int, SIZE, "request bodies held in memory at once"] = field(
        default=256 * 2**20, name="max_body_total"
    )
    max_connections: Annotated[int, whole(1), "open connections of one gateway"] = 8192
    max_connections_per_client: Annotated[
        int, whole(0), "open connections from one address, other than loopback and `proxies`; 0: no limit"
    ] = 256
    proxies: Annotated[
        list[str], TEXTS, "addresses and networks of reverse proxies, exempt from max_connections_per_client"
    ] = []
    header_timeout_s: Annotated[float, DURATION, "how long a client may take to send the head of a request"] = field(
        default=10.0, name="header_timeout"
    )
    min_body_rate_bytes: Annotated[int, SIZE, "the minimum bytes per second of a body that takes longer than 5 s"] = (
        field(default=256, name="min_body_rate")
    )
    mounts: Annotated[
        list[str], TEXTS, 'additional mounts: "module:attribute", or entry points of the group mesh.mounts'
    ] = []
    static: Annotated[
        dict[str, StaticSettings], STATICS, "directories of files to serve; see docs/static-files.md"
    ] = {}
    proxy: Annotated[dict[str, ProxySettings], PROXIES, "HTTP servers to forward requests to; see docs/proxy.md"] = {}
    access_log: Annotated[
        AccessLog, choice("off", "json", "combined"), "one line per request; slow and failed ones are logged anyway"
    ] = "off"
    cors: CorsSettings = field(default_factory=CorsSettings)
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings)
    headers: HeaderSettings = field(default_factory=HeaderSettings)
    compression: CompressionSettings = field(default_factory=CompressionSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)


class KeySettings(Struct, frozen=True, kw_only=True):
    """[keys]: the key of this process, and the directory of the keys that it trusts. See docs/security.md."""

    dir: Annotated[
        Path | None, PATH_OR_NONE, "key files; when set, tcp links are encrypted and both ends authenticate"
    ] = None
    name: Annotated[
        str, TEXT, "this process's key; when absent its role: hub, gateway, operator, client, or its service"
    ] = ""
    secret: Annotated[Secret | None, SECRET, "where its secret key is, if not in `dir`"] = None
    hub: Annotated[str, TEXT, "name of the hubs' keys"] = "hub"


class LogSettings(Struct, frozen=True, kw_only=True):
    """[log]: what is written to stderr, and how."""

    level: Annotated[LogLevel, choice("debug", "info", "warning", "error"), "the lowest level to log"] = "info"
    format: Annotated[
        LogFormat, choice("auto", "console", "json"), "auto is console on a terminal, JSON lines elsewhere"
    ] = "auto"
    slow_s: Annotated[float, DURATION, "longer calls and HTTP requests are logged as warnings"] = field(
        default=1.0, name="slow"
    )


class EngineSettings(Struct, frozen=True, kw_only=True):
    """[engines]: where durable data lives. A name, or "module:attribute" of an engine of the project's own.

    Attributes:
        own: the settings of the engines that have some, [engines.NAME], by the names in their specs.
    """

    default: Annotated[str, ENGINE, "the default for the keys below"] = "sqlite"
    tasks: Annotated[str, ENGINE, "the engine of tasks"] = ""
    events: Annotated[str, ENGINE, "the engine of durable events"] = ""
    state: Annotated[str, ENGINE, "the engine of state"] = ""
    schedules: Annotated[str, ENGINE, "the engine of schedules"] = ""
    locks: Annotated[str, ENGINE, "the engine of locks"] = ""
    own: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for key in ("tasks", "events", "state", "schedules", "locks"):
            if not getattr(self, key):
                force_setattr(self, key, self.default)


class StoreSettings(Struct, frozen=True, kw_only=True):
    """[store]: the process that owns the files of the embedded engine."""

    dir: Annotated[Path, PATH, "its files; accessible to this user only"] = field(
        default_factory=lambda: Path.cwd() / "data"
    )
    backups: Annotated[
        Path | None, PATH_OR_NONE, "where `mesh store backup` writes, and nowhere else; `dir`/backups when absent"
    ] = None
    lease_s: Annotated[float, DURATION, "a worker loses its leases when it is silent for this long"] = field(
        default=10.0, name="lease"
    )
    cache_bytes: Annotated[int, SIZE, "memory for cached database pages"] = field(default=32 * 2**20, name="cache")
    backlog: Annotated[int, whole(1), "units of work that may wait for the disk; more are rejected as overloaded"] = (
        100_000
    )

    @property
    def backups_dir(self) -> Path:
        """Where backups are written."""
        return self.backups if self.backups is not None else self.dir / "backups"


class TaskSettings(Struct, frozen=True, kw_only=True):
    """[tasks]: the defaults of tasks, used when their decorators set none."""

    slots: Annotated[int, whole(1, 10_000), "jobs of one task that a worker runs concurrently"] = 100
    timeout_s: Annotated[float, DURATION, "the timeout of one attempt"] = field(default=300.0, name="timeout")
    retries: Annotated[int, whole(0, 1000), "retries after the first attempt"] = 3
    keep_s: Annotated[float, DURATION, "how long a finished job, its result and its key are kept"] = field(
        default=3600.0, name="keep"
    )
    unknown_after_s: Annotated[float, DURATION, "how long a job waits when no worker of its service knows its task"] = (
        field(default=60.0, name="unknown_after")
    )
    defer_timeout_s: Annotated[float, DURATION, "how long to wait for an unavailable engine"] = field(
        default=10.0, name="defer_timeout"
    )


class EventSettings(Struct, frozen=True, kw_only=True):
    """[events]: which topics are durable, and their retention."""

    durable: Annotated[list[str], TEXTS, 'topics with durable events only, like ["order.#"]'] = []
    retention_s: Annotated[float, DURATION, "how long durable events are kept"] = field(
        default=7 * 86400.0, name="retention"
    )


class InterceptorSettings(Struct, frozen=True, kw_only=True):
    """[interceptors]: classes around all work of a deployment, "package.module:Class", the outermost first.

    See docs/interceptors.md."""

    outgoing: Annotated[list[str], TEXTS, "around the calls that each process makes"] = []
    incoming: Annotated[list[str], TEXTS, "around the calls that services answer"] = []
    delivery: Annotated[list[str], TEXTS, "around attempts of tasks and handlers of events"] = []
    http: Annotated[list[str], TEXTS, "around the HTTP requests of each gateway"] = []


class AutoscaleSettings(Struct, frozen=True, kw_only=True):
    """[autoscale]: how the replicas of a service follow its load, between its `minimum` and its `maximum`."""

    every_s: Annotated[float, DURATION, "interval of measurements"] = field(default=2.0, name="every")
    up_after_s: Annotated[float, DURATION, "load must last this long before workers are added"] = field(
        default=4.0, name="up_after"
    )
    down_after_s: Annotated[float, DURATION, "a surplus must last this long before workers are removed"] = field(
        default=60.0, name="down_after"
    )
    cooldown_s: Annotated[float, DURATION, "how long to wait after a change"] = field(default=6.0, name="cooldown")


class ServiceSettings(ProgramSettings, frozen=True, kw_only=True):
    """[services.NAME]: one service: its classes or its program, its limits, and `config`, a table of the service's own
    values.

    `mesh up` runs the services that name a `class` or a `command`; a table without one only configures the service,
    wherever it runs.
    """

    classes: Annotated[list[str], TEXTS, 'classes that its workers run, like "services.greeting:Greeting"'] = field(
        default_factory=list, name="class"
    )
    replicas: Annotated[int, whole(0, 1024), "number of workers; `mesh scale` overrides it"] = 1
    minimum: Annotated[int, whole(1, 1024), "minimum number of workers for autoscaling"] = 1
    maximum: Annotated[int, whole(0, 1024), "maximum number of workers for autoscaling; 0: no autoscaling"] = 0
    target_cpu: Annotated[float, number(0.05, 1), "autoscaling target: share of a core per worker"] = 0.7
    target_in_flight: Annotated[int, whole(0), "autoscaling target: calls in flight per worker; 0: none"] = 0
    target_latency_s: Annotated[float, DURATION, "autoscaling target: mean duration of a call"] = field(
        default=0.0, name="target_latency"
    )
    concurrency: Annotated[int, whole(1), "calls that a worker runs concurrently; [calls] when absent"] = 4096
    queue: Annotated[int, whole(0), "calls that may queue in a worker; [calls] when absent"] = 1024
    prefer_local: Annotated[bool, FLAG, "callers prefer instances on their own host; [calls] when absent"] = True
    environment: Annotated[dict[str, str], TABLE, "environment variables of its workers"] = {}
    env_file: Annotated[str, TEXT, "a file of NAME=value lines that its workers read at their start"] = ""
    memory_bytes: Annotated[int, SIZE, "hard memory limit of a worker; allocations beyond it fail"] = field(
        default=0, name="memory"
    )
    memory_soft_bytes: Annotated[
        int, SIZE, "memory above which a worker drains and is replaced; 80 % of `memory` when absent"
    ] = field(default=0, name="memory_soft")
    files: Annotated[int, whole(0), "open files of a worker; 0: the limit of the system"] = 0
    nice: Annotated[int, whole(0, 19), "scheduling priority of its workers, as of nice(1)"] = 0
    user: Annotated[str, TEXT, "the user of its workers, if supervisord runs as root"] = ""
    stop_timeout_s: Annotated[float, DURATION, "how long a stopping worker may take to drain; [worker] when absent"] = (
        field(default=0.0, name="stop_timeout")
    )
    start_timeout_s: Annotated[float, DURATION, "how long `started` may take; [worker] when absent"] = field(
        default=0.0, name="start_timeout"
    )
    liveness_s: Annotated[float, DURATION, "how long its event loop may be blocked; [worker] when absent"] = field(
        default=0.0, name="liveness"
    )
    config: dict[str, Any] = {}

    @property
    def runs(self) -> bool:
        """Whether `mesh up` runs it."""
        return bool(self.classes or self.command)


class Settings(Struct, frozen=True, kw_only=True):
    """All settings of mesh.toml. `mesh config` and docs/reference list the keys: `settings.gateway.port`,
    `mesh.connect(settings)`.

    Attributes:
        root: the project's directory: the one that contains mesh.toml, or the current directory without it.
        file: the mesh.toml that was read, or None.
    """

    mesh: MeshSettings = field(default_factory=MeshSettings)
    calls: CallSettings = field(default_factory=CallSettings)
    links: LinkSettings = field(default_factory=LinkSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    log: LogSettings = field(default_factory=LogSettings)
    engines: EngineSettings = field(default_factory=EngineSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    tasks: TaskSettings = field(default_factory=TaskSettings)
    events: EventSettings = field(default_factory=EventSettings)
    interceptors: InterceptorSettings = field(default_factory=InterceptorSettings)
    autoscale: AutoscaleSettings = field(default_factory=AutoscaleSettings)
    keys: KeySettings = field(default_factory=KeySettings)
    services: dict[str, ServiceSettings] = {}
    #: By the name of a method, or a pattern of names.
    policies: dict[str, PolicySettings] = {}
    #: None when the file has no [access]: then every caller may call every method.
    access: AccessSettings | None = None
    root: Path = field(default_factory=Path.cwd)
    file: Path | None = None

    def service(self, name: str) -> ServiceSettings:
        """The settings of one service; those of [calls] when the file does not name it."""
        found = self.services.get(name)
        if found is not None:
            return found
        calls = self.calls
        return ServiceSettings(concurrency=calls.concurrency, queue=calls.queue, prefer_local=calls.prefer_local)

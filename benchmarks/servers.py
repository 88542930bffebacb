"""The servers that contestants of the durable half stand on: each on a free port, its data in a directory of its own.

Owns: how they are started so that nothing of this machine's own configuration takes part and nothing is left behind.
Leaves to others: who needs which (publishers, queues).
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from benchmarks.children import ChildFailed, python
from benchmarks.peers import Command, Place

MESH = "mesh.cli.main"
#: Debian's /usr/sbin/rabbitmq-server runs this one as another user, in that user's directory and with its cookie.
RABBITMQ_DEBIAN = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def redis(place: Place, appendfsync: str) -> Command:
    """A Redis with an append-only file; it answers on the place's first port."""
    arguments = {
        "bind": "127.0.0.1",
        "port": str(place.ports[0]),
        "dir": str(place.directory),
        "logfile": "redis.log",
        "save": "",
        "appendonly": "yes",
        "appendfsync": appendfsync,
        # Rewriting the file in the middle of a load would be chance, not cost.
        "auto-aof-rewrite-percentage": "0",
    }
    flat = [word for name, value in arguments.items() for word in (f"--{name}", value)]
    return Command("redis-server", ["redis-server", *flat], port=place.ports[0])


def epmd(place: Place) -> Command:
    """Erlang's port mapper in the foreground: the daemon that a node starts by itself would outlive the node."""
    port = place.ports[2]
    return Command("epmd", ["epmd", "-address", "127.0.0.1", "-port", str(port)], port=port)


def rabbitmq(place: Place) -> Command:
    """A RabbitMQ node, after its epmd; it answers on the place's first port."""
    amqp, distribution, mapper, _ = place.ports
    plugins = place.directory / "plugins"
    plugins.write_text("[].\n")
    env = {
        # Its cookie is made there.
        "HOME": str(place.directory),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(mapper),
        "RABBITMQ_NODENAME": "bench@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(amqp),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(place.directory / "data"),
        "RABBITMQ_LOG_BASE": str(place.directory),
        "RABBITMQ_LOGS": str(place.directory / "rabbit.log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(place.directory / "none"),
        # Its script then becomes the node instead of waiting for it, and the node gets our signals.
        "detached": "yes",
    }
    script = str(RABBITMQ_DEBIAN) if RABBITMQ_DEBIAN.exists() else "rabbitmq-server"
    return Command("rabbitmq-server", [script], env=env, port=amqp, ready_s=60.0)


def jetstream(place: Place, synced: bool) -> Command:
    """A nats-server with JetStream; `synced` puts every message on the disk before it is confirmed.

    Raises:
        ChildFailed: neither the server nor the file system can do that.
    """
    store, config = place.directory / "jetstream", place.directory / "nats.conf"
    store.mkdir()

    def write(more: str) -> None:
        config.write_text(
            f"host: 127.0.0.1\nport: {place.ports[0]}\njetstream {{\n  store_dir: {str(store)!r}\n{more}}}\n"
        )

    write("  sync_interval: always\n" if synced else "")
    if synced and not _accepted(config):
        # Before 2.10 nats-server cannot be told; its files can: S makes each write to them wait for the disk.
        write("")
        done = subprocess.run(["chattr", "+S", str(store)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ChildFailed(
                f"nats-server before 2.10 cannot sync each message, and {store} no synchronous writes: "
                f"{done.stderr.strip()}"
            )
    return Command("nats-server", ["nats-server", "-c", str(config)], port=place.ports[0])


def _accepted(config: Path) -> bool:
    with contextlib.suppress(OSError):
        return not subprocess.run(["nats-server", "-t", "-c", str(config)], capture_output=True, check=False).returncode
    return False


def hub(place: Place) -> Command:
    """The hub of a mesh whose root is the place's directory."""
    (place.directory / "mesh.toml").touch()
    return Command("hub", python(MESH, "hub"))


def store(place: Place) -> Command:
    """The store of that mesh, with its data in the same directory."""
    return Command("store", python(MESH, "store"), env={"MESH_STORE_DIR": str(place.directory / "data")})

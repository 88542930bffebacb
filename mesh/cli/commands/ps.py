"""`mesh ps`. Owns: combining the views of supervisor and of the registry. Leaves to others: both views."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import exits, loop, setting
from mesh.cli.output import for_people, json_option, note, wants_json, write_json, write_table
from mesh.discovery.share import RELEASE, share_of
from mesh.errors import ConfigError, MeshError, SetupError, Unavailable
from mesh.telemetry import crashes, heartbeats, restarts

if TYPE_CHECKING:
    from mesh.discovery.record import Instance
    from mesh.supervisord.control import Process

#: Prefix of mesh's own services; only mesh itself uses their methods.
OWN = "mesh-"

# How long to wait for a hub; without one, the command shows supervisor's processes.
WAIT_S = 1.5


class NothingRuns(Unavailable):
    """Neither a hub nor a supervisord answers here."""

    advice = "`mesh up` starts everything"


@click.command("ps")
@click.option("--methods", is_flag=True, help="List the methods of each service instead.")
@click.option("--all", "everything", is_flag=True, help="With --methods: those of mesh's own services as well.")
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@json_option
def command(methods: bool, everything: bool, conf: str | None) -> int:
    """Show what runs, and where: every instance that a hub knows, and every process of this host's supervisor.

    When mesh.toml is invalid, or keys cannot be read, no hub can be asked: then the command shows supervisor's
    processes and the error.
    """
    found = setting.usable()
    processes, silent = _processes(conf)
    troubles = [each for each in crashes.read(found.settings.mesh.run_dir) if each.looping]
    ailing = {each.process: told for each in heartbeats.read(found.settings.mesh.run_dir) if (told := each.trouble())}
    trouble = ""
    wrong: MeshError | None = None
    instances: list[Instance] = []
    hubs: list[dict[str, Any]] = []
    try:
        if found.complaints:
            raise ConfigError("\n".join(found.complaints))
        instances, hubs = loop.run(_registry())
    except (ConfigError, SetupError) as exc:
        if methods or not processes:
            raise
        wrong = exc
    except Unavailable as exc:
        if not processes:
            raise NothingRuns(f"nothing runs here: {exc.message}, and {silent or 'no supervisord either'}") from exc
        trouble = f"{exc.message}; only the processes of supervisor are shown"
    if silent:
        trouble = f"{silent}; only instances that hubs know are shown"
    if methods:
        _write_methods(instances if everything else [each for each in instances if not each.service.startswith(OWN)])
    elif wants_json():
        write_json(
            {
                "instances": [_without_schemas(instance) for instance in instances],
                "processes": [process._asdict() for process in processes],
                "hubs": hubs,
                "crash_loops": troubles,
                "ailing": ailing,
                "restarts": restarts.read(found.settings.mesh.run_dir),
            }
        )
    else:
        _write(instances, processes, found.settings.mesh.host)
    if not methods:
        for crash in troubles:
            note(f"{crash.told()}" + (f"; its last line: {crash.words}" if crash.words else ""))
        for name, told in ailing.items():
            note(f"{name}: {told}")
        for service in _idle(instances):
            note(f"{service}: a canary has no share of the calls; `mesh roll {service} --abort` ends it")
    if wrong:
        raise wrong
    if trouble:
        note(trouble)
    return exits.UNAVAILABLE if trouble else exits.OK


async def _registry() -> tuple[list[Instance], list[dict[str, Any]]]:
    async with loop.connected(WAIT_S) as n:
        hubs = [{"endpoint": hub.endpoint, "link": hub.link, "view": hub.view} for hub in n.agent.hubs_status()]
        return sorted(n.table, key=lambda each: (each.service, each.host, each.pid)), hubs


def _processes(conf: str | None) -> tuple[list[Process], str]:
    """The processes of supervisor; and the reason when they are not available although they should be."""
    try:
        layout = setting.layout(conf)
    except ConfigError:
        if conf:
            raise
        return [], ""  # running services without supervisor is normal
    # Imported here, because importing XML-RPC costs more than all the rest of a command.
    from mesh.supervisord import process_tree
    from mesh.supervisord.control import Control, Silent

    control = Control(layout.socket)
    try:
        return control.processes(), ""
    except Silent as exc:
        return [], exc.message
    except Unavailable:
        if pid := process_tree.recorded(layout.pidfile) or process_tree.supervisord_of(layout.server_url, layout.root):
            return [], f"supervisord (pid {pid}) does not answer at {layout.socket}: `mesh doctor` shows why"
        orphans = len(process_tree.members(layout.server_url))
        if not orphans:
            return [], ""
        return [], f"supervisord is gone, {orphans} of its processes run on unsupervised: `mesh down && mesh up`"
    finally:
        control.close()


def _write(instances: list[Instance], processes: list[Process], host: str) -> None:
    from mesh.discovery.http_address import META

    by_pid = {process.pid: process for process in processes if process.pid}
    seen: set[str] = set()
    # Only where there is something to show: most services declare no version.
    versions = any(_version(each) for each in instances)
    shares = any(share_of(each.meta) for each in instances)
    rows: list[tuple[str, ...]] = []
    for instance in instances:
        process = by_pid.get(instance.pid) if instance.host == host else None
        if process is not None:
            seen.add(process.name)
        rows.append(
            (
                instance.service,
                instance.id,
                process.name if process else "–",
                instance.host,
                str(instance.pid or "–"),
                process.state if process else "RUNNING",
                for_people(max(0.0, time.time() - instance.epoch / 1000)),
                # Gateways and programs report none.
                "–" if META in instance.meta else f"{instance.load:.0%}",
                *((_version(instance) or "–",) if versions else ()),
                *((_share(instance) or "–",) if shares else ()),
            )
        )
    for process in processes:
        if process.name not in seen:
            up = for_people(process.up_s) if process.pid else "–"
            more = ("–",) * (versions + shares)
            rows.append(("–", "–", process.name, host, str(process.pid or "–"), process.state, up, "–", *more))
    columns = ["service", "instance", "process", "host", "pid", "state", "up", "load"]
    columns += [*(["version"] if versions else []), *(["calls"] if shares else [])]
    write_table(columns, rows, right=("pid", "up", "load", "calls"))


def _version(instance: Instance) -> str:
    """The version that the service declares, and the deployed release."""
    release = instance.meta.get(RELEASE, "")
    return f"{instance.version} ({release})" if instance.version and release else instance.version or release


def _share(instance: Instance) -> str:
    """The share of calls that all canaries of the service get together."""
    share = share_of(instance.meta)
    if share is None:
        return ""
    return f"canary {_percent(share.share)}" + (f" + copies of {_percent(share.mirror)}" if share.mirror else "")


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.4g} %"


def _idle(instances: list[Instance]) -> list[str]:
    """Services with canaries that have neither a share nor copies: of a command that was killed, or is starting."""
    canaries = [(each.service, share_of(each.meta)) for each in instances]
    return sorted({service for service, share in canaries if share is not None and not (share.share or share.mirror)})


def _write_methods(instances: list[Instance]) -> None:
    found = {
        f"{instance.service}.{name}": record for instance in instances for name, record in instance.methods.items()
    }
    if wants_json():
        import msgspec

        write_json({target: msgspec.to_builtins(record) for target, record in found.items()})
        return
    write_table(
        ("method", "arguments", "answers", "about"),
        [
            (
                target,
                ", ".join(record.params.get("properties", {})),
                "stream" if record.stream else "bytes" if record.binary else "value",
                record.doc.partition("\n")[0],
            )
            for target, record in sorted(found.items())
        ],
    )


def _without_schemas(instance: Instance) -> dict[str, Any]:
    import msgspec

    shown: dict[str, Any] = msgspec.to_builtins(instance)
    shown["methods"] = sorted(instance.methods)
    return shown

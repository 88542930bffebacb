"""`mesh up`. Owns: its options and what it prints. Leaves to others: doing it (deploy.up)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from mesh.cli import exits, loop, process, setting
from mesh.cli.output import for_people, json_option, note, progress, wants_json, write_json, write_table

if TYPE_CHECKING:
    from mesh.deploy.up import Up

#: The fields of an instance's record that --json prints.
_SHOWN: Final = ("service", "id", "worker", "version", "host", "pid", "endpoint", "load")


@click.command("up")
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until everything answers.",
)
@click.option(
    "--foreground",
    is_flag=True,
    help="Stay in the foreground, show the logs, and stop everything on SIGTERM or Ctrl-C.",
)
@json_option
def command(conf: str | None, timeout: float, foreground: bool) -> int:
    """Start everything under supervisor and wait until it answers.

    This starts what mesh.toml declares: each [services.NAME] with a `class`, with as many workers as its `replicas` or
    `mesh scale` specify; the gateways; and the programs of supervisord.conf.

    A project without a supervisord.conf gets one.

    When the project runs already, stopped processes are started, and those that mesh.toml does not name any more leave.
    Running workers are not changed; `mesh roll` applies changed settings to them.
    """
    from mesh.deploy.up import bring_up
    from mesh.supervisord.layout import write_default

    settings = setting.settings()
    own = settings.root / setting.CONF
    if conf is None and not own.exists() and any(service.runs for service in settings.services.values()):
        write_default(own)
        note(f"wrote {own}, the configuration of supervisor; mesh.toml says what runs")
    layout = setting.layout(conf)
    process.quiet()
    following = None
    if foreground:
        from mesh.cli.foreground import Foreground

        following = Foreground(conf)
    try:
        with progress("starting") as tell:
            up = loop.run(bring_up(layout, settings, patience_s=timeout, tell=tell))
    except BaseException:
        if following:
            following.give_up(layout, settings.mesh.run_dir)
        raise
    if wants_json():
        write_json(_as_data(up))
        return following.follow(layout, settings.mesh.run_dir) if following else exits.OK
    write_table(
        ("process", "state", "pid", "up", "instance", "log"),
        [
            (
                each.name,
                each.state,
                str(each.pid),
                for_people(each.up_s),
                ", ".join(one.id for one in up.instances.get(each.pid, ())),
                each.log.removeprefix(f"{layout.root}/"),
            )
            for each in up.processes
        ],
        right=("pid", "up"),
    )
    note(f"up already; checked in {up.seconds:.1f} s" if up.already else f"up in {up.seconds:.1f} s")
    for name in up.earlier:
        note(f"{name} runs with earlier settings; `mesh roll {name}` applies the current mesh.toml")
    if up.http.startswith("unix:"):
        note(f"the gateways listen on {up.http}")
    elif up.path or up.status:
        note(f"try:  curl {up.http + up.path if up.path else up.status}")
    if following:
        note("stop: Ctrl-C")
        return following.follow(layout, settings.mesh.run_dir)
    note("stop: mesh down")
    return exits.OK


def _as_data(up: Up) -> dict[str, Any]:
    import msgspec

    def plain(pid: int) -> list[dict[str, Any]]:
        records = [msgspec.to_builtins(each) for each in up.instances.get(pid, ())]
        return [{name: value for name, value in record.items() if name in _SHOWN} for record in records]

    return {
        "already": up.already,
        "seconds": round(up.seconds, 3),
        "http": up.http,
        "earlier": up.earlier,
        "processes": [{**each._asdict(), "instances": plain(each.pid)} for each in up.processes],
    }

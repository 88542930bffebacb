"""`mesh`: the entry point, and the list of sub-commands, each loaded only when it is used.

Owns: global options, and converting any exception that ends a command into a message and an exit code.
Leaves to others: the commands (commands, one module each), messages (report), codes (exits).

A package adds a command by an entry point of the group `mesh.commands` for a click command. It cannot
replace a command of mesh itself. A command that cannot be imported fails by itself; all others keep working.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, NoReturn

import click

from mesh.cli import exits
from mesh.errors import SetupError
from mesh.suggest import suggestion

#: name -> (module in mesh.cli.commands, description), in the order of `mesh --help`.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "new": ("new", "Make a project: a service, its test, and all settings."),
    "dev": ("dev", "Run a whole mesh in one process, restarted when a file is saved."),
    "up": ("up", "Start everything under supervisor and wait until it answers."),
    "down": ("down", "Stop everything; leave no process and no socket behind."),
    "ps": ("ps", "Show what runs, and where."),
    "top": ("top", "Show all processes live; scale and restart with a key."),
    "scale": ("scale", "Change how many workers a service has."),
    "roll": ("roll", "Replace what runs by the new release, without a failed request."),
    "releases": ("releases", "Show the releases of this host, and who deployed them."),
    "doctor": ("doctor", "Find problems of a set-up, and show how to fix them."),
    "logs": ("logs", "Show the logs of all processes, merged."),
    "autoscale": ("autoscale", "Adjust the number of workers to the load."),
    "run": ("run", "Run services in this process."),
    "program": ("program", "Run a program that speaks HTTP as an instance of a service."),
    "call": ("call", "Call a method and print its answer."),
    "emit": ("emit", "Emit an event to its subscribers."),
    "listen": ("listen", "Print events as they arrive."),
    "defer": ("defer", "Enqueue a background task."),
    "tasks": ("tasks", "Show task queues; manage dead letters."),
    "jobs": ("jobs", "Show a job, wait for it, or cancel it."),
    "events": ("events", "Read the log of durable events; deliver events again."),
    "state": ("state", "Read and write keys of state."),
    "shell": ("shell", "A Python prompt with `await` and a connected `n`."),
    "config": ("config", "Show each setting, and where it comes from."),
    "engines": ("engines", "Show the engines of durable data: what each offers, and which serves what."),
    "keys": ("keys", "Make, list, rotate and revoke the keys that secure links."),
    "apikeys": ("apikeys", "Make, list and revoke API keys of the gateways."),
    "users": ("users", "Add, list and remove the users of internal tools, who log in with a password."),
    "playbooks": ("playbooks", "Print the directory of the Ansible playbooks."),
    "completion": ("completion", "Print the script that completes commands, services and methods in a shell."),
    "bench": ("bench", "Measure mesh on this machine, beside comparable frameworks."),
    "hub": ("hub", "Run the hub, which keeps the registry."),
    "store": ("store", "Run the store of durable data; back it up, check it."),
    "gateway": ("gateway", "Run the HTTP front end."),
}

#: Commands that only supervisor runs; `mesh --help` does not list them.
UNLISTED: Final[dict[str, tuple[str, str]]] = {
    "watch": ("watch", "Report crashes, and slow down crash loops."),
}


#: The group of entry points by which packages add commands.
GROUP: Final = "mesh.commands"


class Unheard(Exception):
    """The reader of the output has closed it."""


class Commands(click.Group):
    """A group that lists its commands by name and imports a command on first use."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise Unheard from None  # click would report a failure
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *_added()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        found = COMMANDS.get(name) or UNLISTED.get(name)
        if found is None:
            return _load(_added()[name]) if name in _added() else None
        command: click.Command = importlib.import_module(f"mesh.cli.commands.{found[0]}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS and name not in UNLISTED and name not in _added():
            ctx.fail(f"there is no command {name!r}{suggestion(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in COMMANDS.items()])
        if added := _added():
            with formatter.section("Commands of other packages"):
                formatter.write_dl([(name, _package(point)) for name, point in added.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write(exits.TEXT + "\n")


@cache
def _added() -> dict[str, EntryPoint]:
    """The commands that installed packages add, by name. Nothing is imported."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return {point.name: point for point in points if point.name not in COMMANDS and point.name not in UNLISTED}


def _package(point: EntryPoint) -> str:
    return f"of {point.dist.name} {point.dist.version}" if point.dist is not None else f"of {point.module}"


def _load(point: EntryPoint) -> click.Command:
    """Import a command of another package.

    Raises:
        SetupError: it cannot be imported, or is not a click command; the message names the package and the remedy.
    """
    remedy = "reinstall, update or uninstall that package"
    try:
        command = point.load()
    # An entry point of another project may raise anything, SystemExit included.
    except (Exception, SystemExit) as exc:
        raise SetupError(
            f"the command {point.name!r} {_package(point)} cannot be loaded: {type(exc).__name__}: {exc}; {remedy}"
        ) from exc
    if not isinstance(command, click.Command):
        raise SetupError(
            f"the command {point.name!r} {_package(point)} is not a click command ({point.value}); {remedy}"
        )
    return command


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"mesh {version('zeromesh')}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", metavar="FILE", help="Read this mesh.toml instead of the nearest one.")
@click.option("--json", "as_json", is_flag=True, help="Print data as JSON (also after each command).")
@click.option("--version", is_flag=True, callback=_version, expose_value=False, is_eager=True, help="Show the version.")
@click.pass_context
def mesh(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """mesh: services over ZeroMQ, HTTP in front, supervisor below.

    Data goes to stdout, everything else to stderr.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    ctx.obj = {"json": as_json}
    if config is not None:
        # Set the environment, so that child processes read the same file.
        os.environ["MESH_CONFIG"] = os.path.abspath(config)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code. Errors are printed, not raised, unless MESH_DEBUG=1."""
    from mesh.errors import MeshError

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result: Any = mesh.main(args=arguments, prog_name="mesh", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return exits.INTERRUPTED
    except Unheard:
        # Python would report the closed pipe again at exit, when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.UNHEARD
    except MeshError as exc:
        if os.environ.get("MESH_DEBUG"):
            raise
        from mesh.cli import report

        report.tell(exc, as_json="--json" in arguments)
        return exits.code_of(exc)
    except Exception as exc:
        if os.environ.get("MESH_DEBUG"):
            raise
        if isinstance(exc, MemoryError):
            from mesh.cli import confine

            confine.use_reserve()
        from mesh.cli import blame

        return exits.FAILED if blame.tell(exc) else exits.BUG
    return result if isinstance(result, int) else exits.OK


def main() -> NoReturn:
    """The console script `mesh`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            # With an ASCII locale "→" cannot be printed: print an escape sequence instead of failing.
            stream.reconfigure(errors="backslashreplace")
    code = run()
    if code == exits.INTERRUPTED:
        # End by the signal itself, so that a shell stops its loop after Ctrl-C, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(code)


if __name__ == "__main__":
    main()

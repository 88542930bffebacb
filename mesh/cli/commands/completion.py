"""`mesh completion`, and shell completion of the arguments of commands: services, methods, tasks, settings.

Names come from the registry, within a short timeout; without a hub there are no completions, and nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem, get_completion_class

from mesh.cli.output import json_option, wants_json, write_json

if TYPE_CHECKING:
    from mesh.discovery.record import Instance

#: Short, because the user waits for it at each Tab.
WAIT_S: Final = 0.5
#: Prefixes of the framework's own services; completed only when the user has typed the beginning of the name.
_OWN: Final = ("mesh-", "$")

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def command(shell: str) -> None:
    """Print the script that lets a shell complete commands, options, services and methods.

    \b
    bash:  eval "$(mesh completion bash)"            in ~/.bashrc
    zsh:   eval "$(mesh completion zsh)"             in ~/.zshrc
    fish:  mesh completion fish > ~/.config/fish/completions/mesh.fish
    """
    from mesh.cli.main import mesh

    found = get_completion_class(shell)
    assert found is not None
    script = found(mesh, {}, "mesh", "_MESH_COMPLETE").source()
    write_json({"shell": shell, "script": script}) if wants_json() else click.echo(script)


def _offering(names: Callable[[Iterable[Instance]], Iterable[str]]) -> Complete:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = sorted(set(names(_instances())))
        return [
            CompletionItem(name)
            for name in found
            if name.startswith(incomplete) and (incomplete or not name.startswith(_OWN))
        ]

    return complete


def _instances() -> list[Instance]:
    from mesh.cli import loop, process

    async def ask() -> list[Instance]:
        async with loop.connected(WAIT_S) as node:
            return list(node.table)

    process.quiet()
    try:
        return loop.run(ask())
    except Exception:
        # An error must not be printed into the line that the user types.
        return []


#: Completions such as "greeting.hello".
methods: Final = _offering(lambda found: (f"{each.service}.{name}" for each in found for name in each.methods))
#: Completions such as "orders.charge".
tasks: Final = _offering(lambda found: (f"{each.service}.{name}" for each in found for name in each.tasks))
#: Completions such as "greeting".
services: Final = _offering(lambda found: (each.service for each in found))
#: Completions such as "greeting=".
scalable: Final = _offering(lambda found: (f"{each.service}=" for each in found))


def settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys of mesh.toml."""
    from mesh.config import origins

    try:
        return [CompletionItem(row.key) for row in origins() if row.key.startswith(incomplete)]
    except Exception:
        return []

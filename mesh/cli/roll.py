"""`mesh roll`. Owns: its options and what it prints. Leaves to others: doing it (supervision.roll)."""

from __future__ import annotations

import click

from mesh.cli import completion, loop, process, setting
from mesh.cli.output import json_option, note, progress, wants_json, write_json


@click.command("roll")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=completion.services)
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one replacement may take to become ready.",
)
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a replacement must go on before the next step.",
)
@json_option
def command(names: tuple[str, ...], conf: str | None, timeout: float, settle: float) -> None:
    """Replace what runs by what mesh.toml, supervisord.conf and the code now say: everything, or what is named.

    \b
      mesh roll                  hub, store, then services and gateways
      mesh roll orders gateway   those

    Of a service or the gateways a spare one is started and waited for; then one after the other finishes what it has,
    leaves, and is started anew; at last the spare one leaves. So there are never fewer than before, and no request is
    refused. Of many, a quarter are replaced at a time. Services go side by side.

    The hub is restarted: calls go on, and only what starts in that second waits for it. The store hands over to one
    that waits already: writers wait for a tenth of a second.

    At the first that does not become ready, everything goes back: what was replaced gets its earlier settings and
    release again. Then the exit code is 1, and the last lines say which one it was and what it wrote. Ctrl-C and
    SIGTERM lead back as well; a second one ends it where it stands, and `mesh up` brings all in line.
    """
    from mesh.supervision.roll import roll

    layout = setting.layout(conf)
    process.quiet()
    with progress("rolling") as tell:
        done = loop.run(roll(layout, setting.settings(), names, patience_s=timeout, settle_s=settle, tell=tell))
    if wants_json():
        write_json([{**each._asdict(), "seconds": round(each.seconds, 3)} for each in done])
        return
    for each in done:
        note(
            f"{each.name}: {each.replaced} replaced in {each.seconds:.1f} s"
            if each.replaced
            else f"{each.name}: none ran"
        )

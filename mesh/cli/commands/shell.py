"""`mesh shell`. Owns: choosing between IPython and the standard prompt, and the names defined in both.

Leaves to others: the standard prompt (console), completion (complete).
"""

from __future__ import annotations

import sys
from typing import Any

import click

from mesh.cli import loop
from mesh.cli.output import json_option

BANNER = """\
mesh shell · {services} · `n` is connected
  await n.call("service.method", …)      await n.rpc.service.method(…)      async for item in n.rpc.service.stream(…): …
"""


@click.command("shell")
@click.option("--plain", is_flag=True, help="Use Python's own prompt, even if IPython is installed.")
@click.option("-c", "code", metavar="CODE", help="Run this code and exit.")
@json_option
def command(plain: bool, code: str | None) -> int:
    """A Python prompt with `await`, completion of services and methods, and a connected `n`.

    \b
      mesh shell -c 'print(await n.rpc.greeting.hello("ujun"))'
    """
    from mesh.cli import console

    if code is not None:
        return loop.run(console.execute(code))
    if not plain and sys.stdin.isatty():
        try:
            import IPython  # noqa: F401
        except ImportError:
            pass
        else:
            from mesh.cli.ipython import interact

            return interact(banner)
    return loop.run(console.interact(banner))


def banner(node: Any) -> str:
    """The text above the first prompt."""
    services = node.service_names()
    return BANNER.format(services=", ".join(services) or "no services yet")

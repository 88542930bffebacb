"""`mesh bench`. Owns: finding the project's benchmarks. Leaves to others: measuring (benchmarks/)."""

from __future__ import annotations

import subprocess
import sys

import click

from mesh.cli import exits, setting


@click.command(
    "bench", context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """Measure mesh on this machine, beside comparable frameworks. `mesh bench --help` lists the benchmarks."""
    root = setting.settings().root
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise click.UsageError(
            f"there are no benchmarks in {root}: they come with the source, not with the installed package"
        )
    # A separate process: measurements must not include the memory and imports of the command line.
    code = subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=root, check=False).returncode
    return code if code >= 0 else exits.FAILED

"""`mesh run` for tests, and waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

from mesh.testing import Mesh

HERE = Path(__file__).parent


@contextlib.asynccontextmanager
async def worker(
    m: Mesh,
    service: str,
    path: Path = HERE,
    cwd: Path = HERE,
    options: Sequence[str] = (),
    closed: bool = False,
    **variables: str,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`mesh run` as a process, in the mesh of this test; `path` goes before all else on its PYTHONPATH.

    `closed`: without a standard input.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mesh.cli.main",
        "run",
        *options,
        service,
        cwd=cwd,
        env={
            **os.environ,
            **variables,
            "MESH_MESH_RUN_DIR": str(m.settings.mesh.run_dir),
            "PYTHONPATH": f"{path}{os.pathsep}{HERE}",
        },
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=partial(os.close, 0) if closed else None,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()

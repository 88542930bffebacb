"""A worker as a process of its own, in the run directory that it is given."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from calls_services import Heavy

    from mesh import config
    from mesh.worker import worker

    settings = config.load(flags={"mesh.run_dir": Path(sys.argv[1]), "worker.processes": 2})
    sys.exit(asyncio.run(worker.run([Heavy], settings)))

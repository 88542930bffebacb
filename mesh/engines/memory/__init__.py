"""An engine in memory: every capability in plain Python structures, for tests and for trying things out.

Owns: the public API of the package; re-exports only.
Leaves to others: the promises (mesh.engines.contract and the contracts of the capabilities), choosing it (choose).
"""

from mesh.engines.memory.engine import MemoryEngine
from mesh.engines.memory.memory import Memory

__all__ = ["Memory", "MemoryEngine"]

"""The embedded engine: one SQLite file, owned by one process, and the Engine by which workers use that process.

Owns: the format of durable data on disk and its changes (core), and the Engine of a worker (client).
Leaves to others: serving workers, sessions and leasing (mesh.store).
"""

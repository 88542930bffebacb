"""The embedded engine: one SQLite file, owned by one process, and the engine by which workers talk to that process.

Owns: what durable data looks like on disk and how it changes (core), and the Engine of a worker (client).
Leaves to others: serving it to workers, sessions and who gets which lease (mesh.store).
"""

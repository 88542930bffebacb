"""Locks: one at a time, over the whole mesh. What users call, and the contract that an engine fulfils."""

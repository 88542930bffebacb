"""Locks: mutual exclusion over the whole mesh. The user's API, and the contract that an engine implements."""

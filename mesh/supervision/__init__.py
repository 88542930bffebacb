"""supervisor: what its configuration says, talking to it, bringing the whole set up and taking it down.

Owns: everything that knows supervisord. Leaves to others: how it looks on a terminal (cli).
"""

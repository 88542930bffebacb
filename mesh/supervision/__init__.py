"""supervisor: its configuration, controlling it, starting and stopping a whole project.

Owns: everything that depends on supervisord. Leaves to others: output on a terminal (cli).
"""

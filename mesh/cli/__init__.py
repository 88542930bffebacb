"""The command line: `mesh …`.

Owns: reading arguments, printing, exit codes. Leaves to others: everything that a command does.
"""

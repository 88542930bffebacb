"""The command line: `mesh …`.

Owns: reading arguments, printing, exit codes. Leaves to others: the work of each command.
"""

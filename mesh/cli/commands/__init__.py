"""The sub-commands of `mesh`, one module each: its options and its output.

A module has one click command named `command`; mesh.cli.main lists it, or an entry point of the group `mesh.commands`.
"""

"""The edge: concerns around every HTTP request, between the connection and the mounts. One file each, off by default.

Owns: nothing here. Leaves to others: the contract (contract), the order (registry), who calls (identity).
"""

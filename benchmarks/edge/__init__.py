"""Measurements of the gateway's edge: `python -m benchmarks.edge sockets|upload|asgi|auth`.

Owns: nothing here. Leaves to others: each measurement (one module each), the processes (site).
"""

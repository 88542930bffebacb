"""The aiohttp front end: HTTP in, calls across the mesh, answers back.

Owns: nothing itself; `app.serve` runs a gateway, `server.Gateway` is the object that tests use.
"""

"""Applications of other frameworks as services: ASGI (FastAPI, Starlette, Litestar, Django) and WSGI (Flask, Django).

Owns: nothing here. Leaves to others: finding an application (loading), running it (asgi, wsgi), HTTP (gateway.apps).
"""

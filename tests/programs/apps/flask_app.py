"""A Flask application on the server of werkzeug, which dies at once on SIGTERM."""

import os
import time

from flask import Flask, Response, jsonify, request

app = Flask(__name__)


@app.get("/shop/hello/<name>")
def hello(name: str) -> Response:
    return jsonify(hello=name, headers=dict(request.headers), query=request.args.to_dict())


@app.get("/shop/where")
def where() -> str:
    return f"{os.environ.get('COLOUR', '')} {os.environ['MESH_INSTANCE']}"


@app.post("/shop/echo")
def echo() -> Response:
    return Response(request.get_data(), content_type=request.content_type)


@app.get("/shop/count/<int:last>")
def count(last: int) -> Response:
    def lines():
        for number in range(last):
            time.sleep(0.05)
            yield f"{number}\n"

    return Response(lines(), content_type="text/plain")


@app.get("/healthz")
def healthy() -> str:
    return "well"

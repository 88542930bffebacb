"""Moleculer with its TCP transporter: two Node processes, `server.js` and `client.js` beside this file."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers import Command, Peer, Place

HERE = Path(__file__).resolve().parent


def _node(script: str, name: str, place: Place) -> Command:
    return Command(name, ["node", str(HERE / script)], env={"PORTS": ",".join(map(str, place.ports))})


PEER = Peer(
    key="moleculer",
    title="Moleculer",
    how="Node, TCP transporter on the loopback; JSON for the small body, Notepack for the big one",
    programs=("node",),
    files=(HERE / "node_modules" / "moleculer",),
    install="apt-get install nodejs npm && npm ci --prefix benchmarks/peers/moleculer",
    answering=lambda place: _node("server.js", "server", place),
    asking=lambda place: _node("client.js", "client", place),
    uvloop=False,
)

"""The application of test_browser_application: a page, its users, and orders that are shown live."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import mesh
from mesh import http


class Users(mesh.Service):
    @http.post("/login", auth=None)
    async def login(self, name: str, password: str) -> http.Response[str]:
        if password != "correct horse":
            raise mesh.Unauthenticated("wrong name or password")
        return http.login(name, body=name)


class Orders(mesh.Service):
    @http.post("/orders", auth="user")
    async def order(self, id: str) -> str:
        """Place an order; the page repeats it until it is answered."""
        context = mesh.current()
        assert context is not None
        value, etag = await self.state("orders").get(id)
        if value is None:
            async with self.atomic():
                await self.state("orders").set(id, context.principal, etag=etag)
                await self.emit("order.placed", {"id": id, "by": context.principal}, durable=True)
        return id

    @http.live("/orders/live", auth="user")
    async def live(
        self, last: Annotated[str, http.Header("Last-Event-ID")] = "", after: int = 0
    ) -> AsyncIterator[http.ServerSentEvent[Any]]:
        async for event in self.tail("order.#", after=int(last) if last else after):
            yield http.ServerSentEvent(event.data, id=str(event.offset), event="order")


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Shop</title>
<h1>Orders</h1>
<p id="who">not logged in</p>
<ol id="list"></ol>
<script src="/app.js"></script>
"""

SCRIPT = """
const placed = [], bySse = [], bySocket = [];
let lastId = 0;
const token = () => (document.cookie.match(/(?:^|; )(?:__Host-)?session_csrf=([^;]*)/) || [])[1] || "";
const post = (path, body) => fetch(path, {
  method: "POST",
  headers: {"Content-Type": "application/json", "X-CSRF-Token": token()},
  body: JSON.stringify(body),
});

async function login(name, password) {
  const answer = await post("/login", {name, password});
  if (!answer.ok) return (await answer.json()).code;
  document.getElementById("who").textContent = await answer.json();
  return "";
}

async function order(id) {
  for (;;) {
    try {
      const answer = await post("/orders", {id});
      if (answer.ok) break;
    } catch (error) { /* the gateway restarts */ }
    await new Promise((done) => setTimeout(done, 100));
  }
  placed.push(id);
}

function follow() {
  const source = new EventSource("/orders/live");
  source.addEventListener("order", (event) => {
    const {id} = JSON.parse(event.data);
    bySse.push(id);
    const item = document.createElement("li");
    item.textContent = id;
    document.getElementById("list").append(item);
  });
  // An EventSource gives up when a connection is refused or answered with an error: begin again, with the last id.
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(() => resume(), 200);
  };
  let lastSse = "";
  source.addEventListener("order", (event) => { lastSse = event.lastEventId; });
  function resume() {
    const next = new EventSource("/orders/live?after=" + (lastSse || 0));
    next.addEventListener("order", (event) => {
      bySse.push(JSON.parse(event.data).id);
      lastSse = event.lastEventId;
    });
    next.onerror = () => { if (next.readyState === EventSource.CLOSED) setTimeout(resume, 200); };
  }
}

function listen() {
  const socket = new WebSocket("ws://" + location.host + "/orders/live?after=" + lastId);
  socket.onmessage = (event) => {
    const {id, data} = JSON.parse(event.data);
    lastId = id;
    bySocket.push(data.id);
  };
  socket.onclose = () => setTimeout(listen, 200);
}
"""

// Starts Swagger UI on this gateway's OpenAPI document.
"use strict";

// Swagger UI's own dark colours; it follows the system, also when that changes.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

const operations = (item) => Object.entries(item).filter(([, each]) => each && each.responses);

// A method that has a route is listed there, and not a second time under /rpc.
function withoutTwins(found) {
  const routed = new Set(Object.entries(found.paths)
    .filter(([path]) => !path.startsWith("/rpc/"))
    .flatMap(([, item]) => operations(item).map(([, each]) => each["x-mesh-target"])));
  for (const [path, item] of Object.entries(found.paths)) {
    if (!path.startsWith("/rpc/")) continue;
    for (const [verb, each] of operations(item)) if (routed.has(each["x-mesh-target"])) delete item[verb];
    if (!operations(item).length) delete found.paths[path];
  }
  return found;
}

// Swagger UI shows an answer when it is complete: a stream is ended after a while, and what has come is shown.
const STREAM_TIMEOUT = "10s";
const STREAMS = /text\/event-stream|application\/x-ndjson/;

function limited(request) {
  const headers = request.headers || {};
  if (STREAMS.test(headers.Accept || headers.accept || "")) headers["X-Request-Timeout"] ??= STREAM_TIMEOUT;
  request.headers = headers;
  return request;
}

async function start() {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`/openapi.json: ${answer.status} ${answer.statusText}`);
  const spec = withoutTwins(await answer.json());
  document.title = `${spec.info.title} · mesh`;
  document.getElementById("title").textContent = spec.info.title;
  document.getElementById("main").textContent = "";
  SwaggerUIBundle({
    spec,
    dom_id: "#main",
    deepLinking: true,
    filter: true,
    tryItOutEnabled: true,
    displayRequestDuration: true,
    defaultModelsExpandDepth: 0,
    syntaxHighlight: { activated: true, theme: "agate" },
    // Swagger's validator is a public server, to which the address of this page would be sent.
    validatorUrl: null,
    requestInterceptor: limited,
  });
}

start().catch((error) => {
  document.getElementById("main").innerHTML = '<p class="quiet">The page could not be built: </p>';
  document.querySelector("#main p").append(String(error.message || error));
});

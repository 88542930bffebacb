// The documentation page: reads /openapi.json, shows it, and lets a reader try a call.
// Everything that comes from the document is set as text, never as markup.
"use strict";

const VERBS = ["get", "post", "put", "patch", "delete"];
const $ = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text. */
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child != null));
  return node;
}

let spec;

function deref(thing) {
  for (let depth = 0; thing && thing.$ref && depth < 16; depth++) {
    thing = thing.$ref.slice(2).split("/").reduce((at, step) => at && at[step], spec);
  }
  return thing || {};
}

// --- schemas, as people write types ---------------------------------------------------------------

function typeOf(schema) {
  if (!schema || Object.keys(schema).length === 0) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const union = schema.anyOf || schema.oneOf;
  if (union) return union.map(typeOf).join(" | ");
  if (schema.type === "array") return schema.items ? typeOf(schema.items) + "[]" : "array";
  if (schema.type === "object") {
    const rest = schema.additionalProperties;
    return rest && typeof rest === "object" ? "map of " + typeOf(rest) : schema.title || "object";
  }
  if (Array.isArray(schema.type)) return schema.type.join(" | ");
  if (schema.contentEncoding === "base64") return "base64";
  return schema.format ? `${schema.type} (${schema.format})` : schema.type || "any";
}

const LIMITS = {
  minimum: "≥ ", exclusiveMinimum: "> ", maximum: "≤ ", exclusiveMaximum: "< ", minLength: "length ≥ ",
  maxLength: "length ≤ ", minItems: "items ≥ ", maxItems: "items ≤ ", pattern: "matches ", multipleOf: "multiple of ",
};

function notesOf(schema) {
  const notes = [];
  if (schema.description) notes.push(schema.description);
  for (const [key, text] of Object.entries(LIMITS)) if (key in schema) notes.push(text + schema[key]);
  if ("default" in schema) notes.push("default " + JSON.stringify(schema.default));
  return notes.join(" · ");
}

/** The structure of a schema, each member on a line, nested ones drawn out once. */
function shapeOf(schema, seen = [], indent = "") {
  const name = schema.$ref && schema.$ref.split("/").pop();
  if (name && seen.includes(name)) return [name];
  const within = name ? [...seen, name] : seen;
  const full = deref(schema);
  if (full.anyOf) {
    const parts = full.anyOf.map((part) => shapeOf(part, within, indent));
    return parts.flatMap((part, at) => (at ? [" | ", ...part] : part));
  }
  if (full.type === "array" && full.items) return [...shapeOf(full.items, within, indent), "[]"];
  const members = full.properties;
  if (!members || Object.keys(members).length === 0) return [typeOf(name && !full.properties ? full : schema)];
  const lines = ["{\n"];
  for (const [key, value] of Object.entries(members)) {
    const note = notesOf(deref(value)) || notesOf(value);
    const optional = (full.required || []).includes(key) ? "" : "?";
    lines.push(indent + "  ", el("span", { class: "k" }, key), optional + ": ");
    lines.push(...shapeOf(value, within, indent + "  "));
    if (note) lines.push(el("span", { class: "c" }, "   " + note));
    lines.push("\n");
  }
  return [...lines, indent + "}"];
}

function exampleOf(schema, depth = 0) {
  const full = deref(schema);
  if ("default" in full && full.default !== null && depth > 0) return full.default;
  if ("const" in full) return full.const;
  if (full.enum) return full.enum[0];
  if (full.anyOf) return exampleOf(full.anyOf.find((part) => part.type !== "null") || full.anyOf[0], depth);
  if (full.type === "array") return full.items && depth < 3 ? [exampleOf(full.items, depth + 1)] : [];
  if (full.type === "object" || full.properties) {
    const made = {};
    const required = full.required || [];
    for (const [key, value] of Object.entries(full.properties || {})) {
      const nullable = (deref(value).anyOf || []).some((part) => part.type === "null");
      if (depth < 4 && (required.includes(key) || (depth === 0 && !nullable))) made[key] = exampleOf(value, depth + 1);
    }
    return made;
  }
  if (full.type === "integer" || full.type === "number") return full.minimum || 1;
  if (full.type === "boolean") return true;
  if (full.type === "null") return null;
  if (full.type === "string") {
    if (full.format === "date-time") return new Date().toISOString();
    if (full.format === "date") return new Date().toISOString().slice(0, 10);
    return full.contentEncoding === "base64" ? "" : "text";
  }
  return null;
}

// --- one operation --------------------------------------------------------------------------------

/** A path that may break behind a slash, and nowhere else. */
function pathParts(path) {
  return path.split(/(\{[^}]+\}|\/)/).flatMap((part) => (part === "/" ? [part, el("wbr")] : part.startsWith("{") ? el("i", {}, part) : part));
}

/** Text of a docstring: what stands in backticks is code. */
function prose(text) {
  return text.split(/(``[^`]+``|`[^`]+`)/).map((part) => (part.startsWith("`") ? el("code", {}, part.replaceAll("`", "")) : part));
}

function operationView(entry) {
  const { verb, path, operation, id } = entry;
  const streams = Object.keys(answerContent(operation)).includes("text/event-stream");
  const view = el(
    "details", { class: "operation", id },
    el(
      "summary", {},
      el("span", { class: "verb " + verb }, verb.toUpperCase()),
      el("span", { class: "path" }, ...pathParts(path)),
      streams ? el("span", { class: "badge" }, "stream") : null,
      el("span", { class: "says" }, ...prose(operation.summary || "")),
    ),
  );
  view.addEventListener("toggle", () => {
    if (view.open && view.childElementCount === 1) view.append(inside(entry));
    if (view.open && location.hash !== "#" + id) history.replaceState(null, "", "#" + id);
    mark(id);
  });
  return view;
}

function answerContent(operation) {
  const success = Object.entries(operation.responses).find(([status]) => status.startsWith("2"));
  return (success && deref(success[1]).content) || {};
}

function inside({ verb, path, operation }) {
  const form = new Map();
  const parts = [];
  if (operation.description) parts.push(el("p", {}, ...prose(operation.description)));
  const parameters = (operation.parameters || []).map(deref);
  if (parameters.length) parts.push(el("div", {}, el("h3", {}, "Parameters"), parameterTable(parameters, form)));
  const body = operation.requestBody ? bodyEditor(deref(operation.requestBody)) : null;
  if (body) parts.push(body.view);
  parts.push(answersView(operation));
  parts.push(tryView(verb, path, operation, parameters, form, body));
  return el("div", { class: "inside" }, parts);
}

function parameterTable(parameters, form) {
  return el(
    "table", {},
    el("tbody", {}, parameters.map((parameter) => {
      const schema = parameter.schema || {};
      const input = fieldFor(parameter, schema);
      form.set(parameter.in + " " + parameter.name, input);
      const note = [parameter.description, notesOf(deref(schema)) || notesOf(schema)].filter(Boolean).join(" · ");
      return el(
        "tr", {},
        el("td", {}, el("code", {}, parameter.name), parameter.required ? el("span", { class: "must", title: "required" }, " *") : null,
          el("span", { class: "note" }, parameter.in)),
        el("td", {}, el("span", { class: "type" }, typeOf(schema)), note ? el("span", { class: "note" }, ...prose(note)) : null),
        el("td", { class: "value" }, input),
      );
    })),
  );
}

function fieldFor(parameter, schema) {
  const label = { "aria-label": parameter.name };
  const full = deref(schema);
  const choices = full.enum || (full.type === "boolean" ? [true, false] : null);
  if (choices) {
    const options = choices.map((choice) => el("option", { value: String(choice) }, String(choice)));
    return el("select", label, parameter.required ? null : el("option", { value: "" }, "—"), options);
  }
  const shown = "default" in schema && schema.default !== null ? String(schema.default) : "";
  return el("input", { ...label, placeholder: shown, spellcheck: "false", autocomplete: "off" });
}

function bodyEditor(body) {
  const types = Object.keys(body.content);
  const json = types.find((type) => type === "application/json");
  const binary = types.find((type) => type !== "application/json");
  const holder = el("div", { class: "result" });
  const editor = { current: json || binary };
  const draw = () => {
    if (editor.current === "application/json") {
      const schema = body.content[json].schema || {};
      const named = (schema.anyOf && !schema.$ref && schema.anyOf.find((part) => part.type === "object")) || schema;
      const text = JSON.stringify(exampleOf(named), null, 2);
      editor.text = el("textarea", { rows: Math.min(14, text.split("\n").length + 1), "aria-label": "JSON body", spellcheck: "false" });
      editor.text.value = text;
      editor.file = null;
      const drawn = Object.keys(deref(named).properties || {}).length ? el("pre", { class: "shape" }, ...shapeOf(named)) : null;
      holder.replaceChildren(...[drawn, editor.text].filter(Boolean));
    } else {
      const note = (body.content[editor.current].schema || {}).description;
      editor.file = el("input", { type: "file", "aria-label": "file" });
      editor.text = null;
      holder.replaceChildren(...[note ? el("span", { class: "note" }, note) : null, editor.file].filter(Boolean));
    }
  };
  draw();
  const choices = json && binary ? [json, binary] : [];
  const choose = choices.length
    ? el("select", { "aria-label": "type of the body", onchange: (event) => { editor.current = event.target.value; draw(); } },
        choices.map((type) => el("option", { value: type }, type)))
    : el("code", { class: "quiet" }, editor.current);
  editor.view = el("div", {}, el("h3", {}, "Body"), el("div", { class: "result" }, el("div", { class: "row" }, choose), holder));
  return editor;
}

function answersView(operation) {
  const content = answerContent(operation);
  const types = Object.keys(content);
  const schema = operation.responses && types.length ? content[types[0]].schema : null;
  const item = Object.values(operation.responses).map((answer) => answer["x-mesh-item"]).find(Boolean);
  const shown = item || schema;
  const badges = Object.entries(operation.responses).map(([status, answer]) =>
    el("span", { class: "badge" }, el("b", {}, status), " " + (deref(answer).description || "")));
  const drawn = shown && (item || types[0] === "application/json")
    ? el("pre", { class: "shape" }, item ? "each item: " : "", ...shapeOf(shown))
    : types.length ? el("code", { class: "quiet" }, types[0]) : null;
  return el("div", {}, el("h3", {}, "Answer"), el("div", { class: "result" }, drawn, el("div", { class: "answers" }, badges)));
}

// --- trying it ------------------------------------------------------------------------------------

function tryView(verb, path, operation, parameters, form, body) {
  const result = el("div", { class: "result", "aria-live": "polite" });
  const curl = el("pre", {});
  let running = null;
  const send = el("button", { class: "main", type: "button" }, "Send");
  const stop = el("button", { type: "button", disabled: true }, "Stop");
  const update = () => { curl.textContent = curlLine(request(verb, path, parameters, form, body)); };
  send.addEventListener("click", async () => {
    running = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    try {
      await run(request(verb, path, parameters, form, body), running.signal, result);
    } catch (error) {
      if (error.name === "AbortError") result.append(el("span", { class: "note" }, "stopped"));
      else result.replaceChildren(el("span", { class: "status bad" }, String(error.message || error)));
    }
    send.disabled = false;
    stop.disabled = true;
  });
  stop.addEventListener("click", () => running && running.abort());
  const view = el("div", {}, el("h3", {}, "Try it"), el("div", { class: "result" }, curl, el("div", { class: "row" }, send, stop), result));
  setTimeout(() => {
    update();
    view.parentElement.addEventListener("input", update);
    view.parentElement.addEventListener("change", update);
  });
  return view;
}

function request(verb, path, parameters, form, body) {
  const query = [];
  const headers = {};
  let address = path;
  for (const parameter of parameters) {
    const value = form.get(parameter.in + " " + parameter.name).value;
    if (parameter.in === "path") address = address.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else if (value === "") continue;
    else if (parameter.in === "header") headers[parameter.name] = value;
    else if (deref(parameter.schema || {}).type === "array" && !value.startsWith("["))
      for (const each of value.split(",")) query.push([parameter.name, each.trim()]);
    else query.push([parameter.name, value]);
  }
  if (query.length) address += "?" + query.map(([name, value]) => encodeURIComponent(name) + "=" + encodeURIComponent(value)).join("&");
  const made = { method: verb.toUpperCase(), address, headers };
  if (body && body.text) {
    made.body = body.text.value;
    if (made.body) headers["Content-Type"] = "application/json";
  } else if (body && body.file) {
    made.file = body.file.files[0] || null;
    made.body = made.file || new Blob([]);
    headers["Content-Type"] = (made.file && made.file.type) || "application/octet-stream";
  }
  return made;
}

function curlLine({ method, address, headers, body, file }) {
  const quote = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
  const words = ["curl"];
  if (method !== "GET" && !(method === "POST" && body)) words.push("-X", method);
  for (const [name, value] of Object.entries(headers)) words.push("-H", quote(`${name}: ${value}`));
  if (file !== undefined) words.push("--data-binary", quote("@" + (file ? file.name : "FILE")));
  else if (body) words.push("-d", quote(compact(body)));
  return [...words, quote(location.origin + address)].join(" ");
}

function compact(text) {
  try { return JSON.stringify(JSON.parse(text)); } catch { return text; }
}

async function run({ method, address, headers, body }, signal, result) {
  result.replaceChildren(el("span", { class: "note" }, "waiting …"));
  const began = performance.now();
  const answer = await fetch(address, { method, headers, body, signal });
  const type = (answer.headers.get("Content-Type") || "").split(";")[0];
  const line = el("span", { class: "status " + (answer.ok ? "good" : "bad") }, `${answer.status} ${answer.statusText}`);
  const facts = el("span", { class: "note" });
  const tell = (size) => { facts.textContent = `${type || "no body"} · ${size.toLocaleString()} bytes · ${(performance.now() - began).toFixed(1)} ms`; };
  tell(0);
  result.replaceChildren(el("div", { class: "row" }, line, facts));
  if (type.startsWith("image/") && answer.ok) {
    const blob = await answer.blob();
    tell(blob.size);
    result.append(el("img", { src: URL.createObjectURL(blob), alt: "the answer" }));
    return;
  }
  const shown = el("pre", {});
  if (type === "text/event-stream" || type === "application/x-ndjson") {
    result.append(shown);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let size = 0; ;) {
      const { value, done } = await reader.read();
      if (done) break;
      size += value.length;
      tell(size);
      // The page is for looking: an endless stream shows its last part.
      shown.textContent = (shown.textContent + value).slice(-20000);
      shown.scrollTop = shown.scrollHeight;
    }
    return;
  }
  const data = await answer.arrayBuffer();
  tell(data.byteLength);
  if (data.byteLength === 0) return;
  const text = new TextDecoder().decode(data.slice(0, 200000));
  if (type.endsWith("json")) {
    try { shown.textContent = JSON.stringify(JSON.parse(text), null, 2); } catch { shown.textContent = text; }
  } else if (type.startsWith("text/")) shown.textContent = text;
  else shown.textContent = [...new Uint8Array(data.slice(0, 256))].map((byte) => byte.toString(16).padStart(2, "0")).join(" ") + (data.byteLength > 256 ? " …" : "");
  result.append(shown);
}

// --- the page -------------------------------------------------------------------------------------

/** Every operation; a method that has a route of its own is not shown a second time as /rpc/…. */
function entries() {
  const all = [];
  const routed = new Set(Object.entries(spec.paths).filter(([path]) => !path.startsWith("/rpc/"))
    .flatMap(([, item]) => VERBS.map((verb) => item[verb] && item[verb]["x-mesh-target"])));
  for (const [path, item] of Object.entries(spec.paths)) {
    for (const verb of VERBS) {
      const operation = item[verb];
      if (!operation || (path.startsWith("/rpc/") && routed.has(operation["x-mesh-target"]))) continue;
      all.push({ verb, path, operation, service: (operation.tags || ["other"])[0], id: operation.operationId });
    }
  }
  return all;
}

function mark(id) {
  for (const link of document.querySelectorAll("#index a")) link.classList.toggle("here", link.getAttribute("href") === "#" + id);
}

function draw() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = ({ verb, path, operation, service }) => {
    const text = `${verb} ${path} ${operation.summary || ""} ${operation.operationId} ${service}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  const shown = entries().filter(fits);
  const index = [];
  const sections = [];
  for (const tag of spec.tags || []) {
    const mine = shown.filter((entry) => entry.service === tag.name);
    if (!mine.length) continue;
    // Declared routes come first; every method can be called by name as well.
    mine.sort((a, b) => a.path.startsWith("/rpc/") - b.path.startsWith("/rpc/"));
    index.push(el("h2", {}, tag.name));
    index.push(el("ul", {}, mine.map((entry) => el("li", {}, el("a", { href: "#" + entry.id, title: entry.path },
      el("span", { class: "verb " + entry.verb }, entry.verb.toUpperCase()),
      el("span", { class: "path" }, entry.path.replace(`/rpc/${tag.name}/`, "/rpc/…/")))))));
    sections.push(el("section", { class: "service" }, el("h2", {}, tag.name),
      tag.description ? el("p", { class: "quiet" }, ...prose(tag.description)) : null, mine.map(operationView)));
  }
  const empty = el("p", { class: "quiet" }, words.length ? "Nothing fits." : "No service runs yet. Start one with: mesh run services.greeting:Greeting");
  $("index").replaceChildren(...index);
  $("main").replaceChildren(
    el("h1", {}, spec.info.title),
    el("p", { class: "quiet" }, `${(spec.tags || []).length} services, ${shown.length} operations.`),
    ...(sections.length ? sections : [empty]),
  );
  open();
}

function open() {
  const id = decodeURIComponent(location.hash.slice(1));
  const target = id && $(id);
  if (!target) return;
  target.open = true;
  target.scrollIntoView();
}

async function start() {
  try {
    const answer = await fetch("/openapi.json");
    if (!answer.ok) throw new Error(`/openapi.json answered ${answer.status}`);
    spec = await answer.json();
  } catch (error) {
    $("main").replaceChildren(el("p", { class: "must" }, `The document cannot be read: ${error.message}`));
    return;
  }
  document.title = `${spec.info.title}: documentation`;
  $("title").textContent = spec.info.title;
  $("filter").addEventListener("input", draw);
  addEventListener("hashchange", open);
  draw();
}

start();

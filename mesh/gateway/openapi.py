"""The OpenAPI 3.1 document of everything that the gateway serves.

Owns: operations from routes and methods, and moving every `$defs` to `components/schemas`. Pure.
Leaves to others: the schemas themselves (calls.signature), parts of other packages (openapi_parts), when to rebuild it
(mounts.openapi), showing it (mounts.docs).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from mesh.discovery.record import MethodRecord, TaskRecord
from mesh.gateway.catalog import Catalog
from mesh.gateway.convert import is_bytes
from mesh.gateway.entry import NO_POLICY, Entry
from mesh.gateway.media import BINARY_TYPE, JSON_TYPE, NDJSON_TYPE, SSE_TYPE
from mesh.gateway.openapi_fixed import PROBLEM, SSE_EVENT, TIMEOUT_PARAMETER, problem_response
from mesh.gateway.openapi_parts import add_part
from mesh.gateway.openapi_tasks import DEFER_PARAMETERS, DEFERRED, JOB, job_operations
from mesh.gateway.reply import phrase
from mesh.gateway.routes import LITERAL, REST, VERBS, Route, segment_kind, segments, shape
from mesh.gateway.uploads import form_types, takes_bytes

Schema = dict[str, Any]

_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9._-]")
_REF: Final = "#/$defs/"
_COMPONENT: Final = "#/components/schemas/"

_BASE64: Final = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

#: The statuses of errors that any operation may return.
_FAILURES: Final = (400, 404, 429, 500, 503, 504)
_BODY_FAILURES: Final = (413, 415)


class Required(Protocol):
    """What an operation requires of its caller; see mesh.config.edge_auth.Requirement."""

    @property
    def user(self) -> bool: ...
    @property
    def scopes(self) -> Sequence[str]: ...
    @property
    def roles(self) -> Sequence[str]: ...


class Document:
    """A document under construction. The mounts add their parts, in the order of the table.

    Args:
        catalog: the offers of all services.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._components: dict[str, dict[str, Any]] = {
            "schemas": {"Problem": PROBLEM},
            "responses": {
                f"Problem{status}": problem_response(status) for status in sorted((*_FAILURES, *_BODY_FAILURES))
            },
        }
        self._schemas = self._components["schemas"]
        self._paths: dict[str, dict[str, Any]] = {}
        self._tags: dict[str, str] = {}
        # For OpenAPI, templates that differ only in parameter names are the same path.
        self._templates: dict[str, str] = {}
        self._ids: set[str] = set()
        #: What each path and verb is for; several entries when a call and a stream share them.
        self._entries: dict[tuple[str, str], list[Entry]] = {}

    def make(self, *, title: str, version: str) -> dict[str, Any]:
        """The finished document.

        Args:
            title: the mesh's name.
            version: the version of the framework.
        """
        offers = self._catalog.offers
        services = {name: offers[name].doc for name in sorted(offers) if name in self._tags}
        return {
            "openapi": "3.1.0",
            "info": {"title": title, "version": version, "description": "Every service of this mesh, over HTTP."},
            "servers": [{"url": "/"}],
            "tags": [{"name": name, "description": doc} for name, doc in {**services, **self._tags}.items()],
            "paths": self._paths,
            "components": self._components,
        }

    def add(self, prefix: str, part: Mapping[str, Any]) -> None:
        """Add a part of a mount: `paths`, `components` and `tags` in the form of OpenAPI 3.1.

        A reference may also be to the schema `Problem` and to the responses `Problem400`, `Problem404` and so on.

        Args:
            prefix: of the mount; every path of the part must be below it.

        Raises:
            BadPart: the part is not what OpenAPI allows there, or contradicts another part.
        """
        before = set(self._paths)
        add_part(part, prefix, self._paths, self._components, self._tags, self._ids)
        for path in self._paths.keys() - before:
            self._note(path, self._paths[path], Entry(prefix))

    def secure(self, schemes: Mapping[str, Schema], required: Callable[[Entry], Required]) -> None:
        """Add security schemes, and to each operation what it requires of its caller.

        Args:
            schemes: by name; a caller needs one of them.
            required: what a request requires.
        """
        if schemes:
            self._components.setdefault("securitySchemes", {}).update(schemes)
        responses = self._components["responses"]
        responses |= {f"Problem{status}": problem_response(status) for status in (401, 403)}
        for (path, verb), entries in self._entries.items():
            operation = self._paths[path][verb]
            needs = [each for entry in entries if (each := required(entry)).user]
            if not needs:
                continue
            scopes = sorted({scope for each in needs for scope in each.scopes})
            roles = sorted({role for each in needs for role in each.roles})
            if schemes:
                operation["security"] = [{name: scopes} for name in schemes]
            self._fail(operation, (401, 403) if scopes or roles else (401,))
            if roles:
                operation["x-mesh-roles"] = roles

    def _note(self, path: str, verbs: Iterable[str], entry: Entry) -> None:
        for verb in verbs:
            if isinstance(self._paths[path][verb], dict) and "responses" in self._paths[path][verb]:
                self._entries.setdefault((path, verb), []).append(entry)

    def add_routes(self) -> None:
        """Add the declared routes of all services."""
        for route in self._catalog.routes.routes:
            # OpenAPI 3.1 has no WebSockets.
            if route.record.verb in VERBS and not route.raw:
                self._add_route(route)

    def add_methods(self) -> None:
        """Add the methods that /rpc reaches."""
        for service in sorted(self._catalog.offers):
            for name, method in self._catalog.methods(service).items():
                # The body of one with a client stream is no JSON: it has routes only.
                if method.inbound is None:
                    self._add_rpc(service, name, method)

    def add_tasks(self) -> None:
        """Add the tasks that /tasks reaches."""
        for service in sorted(self._catalog.offers):
            for name, task in self._catalog.tasks(service).items():
                self._add_task(service, name, task)

    def add_jobs(self) -> None:
        """Add the operations on jobs, when there are tasks."""
        if any(self._catalog.tasks(service) for service in self._catalog.offers):
            self._schemas["Job"] = JOB
            self._tags["jobs"] = "State and results of deferred tasks."
            self._paths["/jobs/{id}"] = job_operations("jobs")
            self._note("/jobs/{id}", ("get", "delete"), Entry("/jobs"))

    def add_answers(self, route: Route, statuses: Iterable[int]) -> None:
        """Add answers that a concern of the edge gives for a declared route; from 400 on they are problems."""
        template, _ = self._template(route.record.path)
        responses = self._paths[template][route.record.verb.lower()]["responses"]
        for status in statuses:
            if status < 400:
                responses.setdefault(str(status), {"description": phrase(status)})
            else:
                self._components["responses"].setdefault(f"Problem{status}", problem_response(status))
                responses.setdefault(str(status), {"$ref": f"#/components/responses/Problem{status}"})

    def _add_route(self, route: Route) -> None:
        record, method = route.record, route.method
        schemas = self._properties(route.service, method)
        required = method.params.get("required", ())
        template, names = self._template(record.path)
        parameters: list[Schema] = [
            {"name": shown, "in": "path", "required": True, "schema": schemas.get(name, {"type": "string"})}
            for name, shown in names.items()
        ]
        fields: dict[str, Schema] = {}
        body: Schema | None = None
        for name, source in record.sources.items():
            schema = schemas.get(name, {})
            if source == "query":
                parameters.append({"name": name, "in": "query", "required": name in required, "schema": schema})
            elif source == "field":
                fields[name] = schema
            elif source == "body":
                body = _body_of(method, name, schema, required=name in required)
        if method.inbound is not None:
            body = _upload_of(method.inbound, self._moved(route.service, method.inbound, method.inbound))
        if fields:
            needed = [name for name in fields if name in required]
            whole: Schema = {"type": "object", "properties": fields, "additionalProperties": False}
            if needed:
                whole["required"] = needed
            body = {"required": bool(needed), "content": {JSON_TYPE: {"schema": whole}}}
        operation = self._operation(
            route.service, method, f"{route.service}.{record.method}", record.status, record.produces
        )
        operation["parameters"] = _unique([*parameters, *_elsewhere(method, schemas), TIMEOUT_PARAMETER])
        for status, meaning in record.responses.items():
            # A status that the document has already keeps its content: that of a success, or of a problem.
            operation["responses"].setdefault(status, {})["description"] = meaning
        if body is not None:
            operation["requestBody"] = body
            self._fail(operation, _BODY_FAILURES)
        verbs = self._paths.setdefault(template, {})
        held = verbs.setdefault(record.verb.lower(), operation)
        self._note(template, (record.verb.lower(),), Entry("/", route.target, record.edge or NO_POLICY))
        if held is not operation:
            # A call and a stream on one address are one operation; the Accept header selects the answer.
            for status, answer in operation["responses"].items():
                held["responses"].setdefault(status, answer).setdefault("content", {}).update(answer.get("content", {}))

    def _add_rpc(self, service: str, name: str, method: MethodRecord) -> None:
        operation = self._operation(service, method, f"rpc.{service}.{name}", 200, "")
        self._add_arguments(operation, self._properties(service, method), method)
        path = f"/rpc/{service}/{name}"
        self._paths[path] = {"post": operation}
        self._note(path, ("post",), Entry("/rpc", f"{service}.{name}", method.edge or NO_POLICY))

    def _add_task(self, service: str, name: str, task: TaskRecord) -> None:
        # Describe a task as a method that answers with the address of its job.
        method = MethodRecord(name, params=task.params, doc=task.doc, headers=task.headers, cookies=task.cookies)
        operation = self._operation(service, method, f"tasks.{service}.{name}", 202, "")
        operation["responses"]["202"] = {
            "description": "The task is durable. x-mesh-result is the schema of the result that its job will have.",
            "headers": {"Location": {"description": "The job's address.", "schema": {"type": "string"}}},
            "content": {JSON_TYPE: {"schema": {"$ref": _COMPONENT + "Deferred"}}},
            "x-mesh-result": self._moved(service, task.returns, task.returns),
        }
        self._add_arguments(operation, self._properties(service, method), method)
        operation["parameters"] = _unique([*DEFER_PARAMETERS, *operation["parameters"][:-1]])
        self._schemas.setdefault("Deferred", DEFERRED)
        path = f"/tasks/{service}/{name}"
        self._paths[path] = {"post": operation}
        self._note(path, ("post",), Entry("/tasks", f"{service}.{name}", task.edge or NO_POLICY))

    def _add_arguments(self, operation: Schema, schemas: dict[str, Schema], method: MethodRecord) -> None:
        """Add the body: the arguments by name or by position, or the only bytes argument."""
        elsewhere = _elsewhere(method, schemas)
        schemas = {
            each: schema
            for each, schema in schemas.items()
            if each not in method.headers and each not in method.cookies
        }
        needed = [each for each in method.params.get("required", ()) if each in schemas]
        named: Schema = {"type": "object", "properties": schemas, "additionalProperties": False}
        if needed:
            named["required"] = needed
        positional: Schema = {"type": "array", "description": "The same arguments by position, in this order."}
        if schemas:
            positional["prefixItems"] = list(schemas.values())
        positional["maxItems"] = len(schemas)
        # Up to the last required argument: by position, the arguments before it cannot be omitted.
        positional["minItems"] = max((at for at, each in enumerate(schemas, 1) if each in needed), default=0)
        content: dict[str, Schema] = {JSON_TYPE: {"schema": {"anyOf": [named, positional]}}}
        binary = [each for each in schemas if is_bytes(method.params["properties"][each], method.params)]
        parameters: list[Schema] = []
        if len(binary) == 1:
            content[BINARY_TYPE] = {
                "schema": {"description": f"{binary[0]} as raw bytes; the other arguments go into the query."}
            }
            parameters += [
                {"name": each, "in": "query", "schema": schema}
                for each, schema in schemas.items()
                if each not in binary
            ]
        operation["parameters"] = _unique([*parameters, *elsewhere, TIMEOUT_PARAMETER])
        operation["requestBody"] = {"required": bool(needed), "content": content}
        self._fail(operation, _BODY_FAILURES)

    def _operation(self, service: str, method: MethodRecord, name: str, status: int, produces: str) -> Schema:
        identifier, number = name, 2
        while identifier in self._ids:
            identifier, number = f"{name}.{number}", number + 1
        self._ids.add(identifier)
        self._tags.setdefault(service, self._catalog.offers[service].doc)
        summary, _, rest = method.doc.strip().partition("\n")
        # The page shows a method only once when it also has a route.
        operation: Schema = {
            "operationId": identifier,
            "tags": [service],
            "x-mesh-target": f"{service}.{method.name}",
        }
        if summary:
            operation["summary"] = summary
        if rest.strip():
            operation["description"] = rest.strip()
        operation["responses"] = {str(status): self._success(service, method, status, produces)}
        self._fail(operation, _FAILURES)
        return operation

    def _success(self, service: str, method: MethodRecord, status: int, produces: str) -> Schema:
        schema = self._moved(service, method.returns, method.returns)
        if status in (204, 304):
            return {"description": phrase(status)}
        if method.stream:
            item = {"schema": SSE_EVENT}
            lines = {"schema": {"type": "string", "description": "One item per line."}}
            content: dict[str, Schema] = {SSE_TYPE: item, NDJSON_TYPE: lines}
            if method.binary and produces:
                content = {produces: {"schema": {}}, **content}
            return {"description": "A stream.", "content": content, "x-mesh-item": schema}
        if method.binary:
            return {"description": phrase(status), "content": {produces or BINARY_TYPE: {"schema": {}}}}
        return {"description": phrase(status), "content": {produces or JSON_TYPE: {"schema": schema}}}

    def _fail(self, operation: Schema, statuses: tuple[int, ...]) -> None:
        for status in statuses:
            operation["responses"].setdefault(str(status), {"$ref": f"#/components/responses/Problem{status}"})

    def _template(self, path: str) -> tuple[str, dict[str, str]]:
        """The path in the form of OpenAPI, and the name of each parameter in it."""
        kinds = [segment_kind(step) for step in segments(path)]
        known = self._templates.setdefault(
            shape(path), "/" + "/".join(text if kind == LITERAL else f"{{{text}}}" for kind, text in kinds)
        )
        shown = segments(known)
        names = {
            text: shown[index][1:-1] for index, (kind, text) in enumerate(kinds) if kind != LITERAL or kind == REST
        }
        return known, names

    def _properties(self, service: str, method: MethodRecord) -> dict[str, Schema]:
        found = method.params.get("properties", {})
        return {name: self._moved(service, schema, method.params) for name, schema in found.items()}

    def _moved(self, service: str, schema: Any, root: Mapping[str, Any]) -> Any:
        """The schema with its definitions moved to the components, and its references changed accordingly."""
        names = self._relocate(service, root.get("$defs", {}))
        return _rewrite({key: value for key, value in schema.items() if key != "$defs"}, names)

    def _relocate(self, service: str, definitions: Mapping[str, Schema]) -> dict[str, str]:
        """Add definitions to the components; a different definition of a used name is prefixed with its service."""
        names = {each: _NOT_IN_NAMES.sub("_", each) for each in definitions}
        for attempt in range(100):
            moved = {names[each]: _rewrite(schema, names) for each, schema in definitions.items()}
            taken = [
                each for each in definitions if self._schemas.get(names[each], moved[names[each]]) != moved[names[each]]
            ]
            if not taken:
                self._schemas.update(moved)
                break
            suffix = f".{attempt + 1}" if attempt else ""
            for each in taken:
                names[each] = _NOT_IN_NAMES.sub("_", f"{service}.{each}{suffix}")
        return names


def _rewrite(schema: Any, names: Mapping[str, str]) -> Any:
    if isinstance(schema, Mapping):
        # `contentEncoding` only describes text; a pattern also rejects invalid text.
        more = {"pattern": _BASE64} if schema.get("contentEncoding") == "base64" else {}
        return more | {
            key: _COMPONENT + names.get(value.removeprefix(_REF), "Problem")
            if key == "$ref" and isinstance(value, str) and value.startswith(_REF)
            else _rewrite_mapping(value, names)
            if key == "mapping" and isinstance(value, Mapping)
            else _rewrite(value, names)
            for key, value in schema.items()
        }
    if isinstance(schema, list):
        return [_rewrite(each, names) for each in schema]
    return schema


def _rewrite_mapping(mapping: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rewrite the mapping of a discriminator, which contains references as plain strings."""
    return {
        key: _COMPONENT + names[value.removeprefix(_REF)]
        if isinstance(value, str) and value.removeprefix(_REF) in names
        else value
        for key, value in mapping.items()
    }


def _elsewhere(method: MethodRecord, schemas: Mapping[str, Schema]) -> list[Schema]:
    """The parameters that are header fields and cookies."""
    required = method.params.get("required", ())
    return [
        {"name": name, "in": place, "required": each in required, "schema": schemas.get(each, {})}
        for place, named in (("header", method.headers), ("cookie", method.cookies))
        for each, name in named.items()
    ]


def _unique(parameters: list[Schema]) -> list[Schema]:
    """The parameters without those that are there twice: a method may read a header field of the gateway, too."""
    found: dict[tuple[str, str], Schema] = {}
    for each in parameters:
        name = each["name"].lower() if each["in"] == "header" else each["name"]
        found.setdefault((each["in"], name), each)
    return list(found.values())


def _upload_of(inbound: Schema, moved: Schema) -> Schema:
    """The request body of a method with a client stream; `moved` is its schema with definitions in the components."""
    if forms := form_types(inbound):
        form = {key: value for key, value in moved.items() if key != "contentMediaType"}
        # A form without required fields may be empty, but its body has a Content-Type.
        return {"required": True, "content": {each: {"schema": form} for each in forms}}
    if takes_bytes(inbound):
        return {"required": False, "content": {BINARY_TYPE: {"schema": {}}}}
    shown: Schema = {"description": "One JSON value per line.", "x-mesh-item": inbound}
    return {"required": False, "content": {NDJSON_TYPE: {"schema": shown}}}


def _body_of(method: MethodRecord, name: str, schema: Schema, *, required: bool) -> Schema:
    if is_bytes(method.params.get("properties", {}).get(name, {}), method.params):
        # A missing body counts as an empty one, which is valid.
        return {"required": False, "content": {BINARY_TYPE: {"schema": {}}, "*/*": {"schema": {}}}}
    return {"required": required, "content": {JSON_TYPE: {"schema": schema}}}

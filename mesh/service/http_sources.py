"""Where in an HTTP request the parameters of a method are found.

Owns: the rule, and the markers that override it.
Leaves to others: applying it to a request (gateway.binding, gateway.fields), how parameters are declared
(calls.declared).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from mesh.calls.declared import BadDeclaration, Parameter
from mesh.discovery.record import Source
from mesh.protocol.http_head import is_token

#: HTTP verbs without a request body.
_BODILESS: Final = frozenset({"GET", "DELETE", "WEBSOCKET"})


class HttpSource(NamedTuple):
    """A marker in `Annotated[T, …]`: `http.Body`, `http.Query` or `http.Field`."""

    source: Source


#: The parameter is the whole body.
Body: Final = HttpSource("body")
#: The parameter is in the query string.
Query: Final = HttpSource("query")
#: The parameter is a member of the JSON object in the body.
Field: Final = HttpSource("field")


class Header:
    """A marker: the parameter is a header field of the HTTP request: `Annotated[str, http.Header("X-Tenant")]`.

    Args:
        name: of the field; "" derives it from the parameter: `user_agent` reads `User-Agent`. `http.Header` without
            parentheses does the same.

    Raises:
        BadDeclaration: the name cannot be that of a header field.
    """

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        self.name = _checked("http.Header", name)

    def __repr__(self) -> str:
        return f"http.Header({self.name!r})"


class Cookie:
    """A marker: the parameter is a cookie of the HTTP request: `Annotated[str, http.Cookie("session")]`.

    Args:
        name: of the cookie; "" takes the name of the parameter.

    Raises:
        BadDeclaration: the name cannot be that of a cookie.
    """

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        self.name = _checked("http.Cookie", name)

    def __repr__(self) -> str:
        return f"http.Cookie({self.name!r})"


def _checked(what: str, name: str) -> str:
    if not isinstance(name, str) or (name and not is_token(name)):
        raise BadDeclaration(f"{what}: {name!r:.80} is not a valid name; use letters, digits and - _ .")
    return name


class Fields(NamedTuple):
    """The parameters that are header fields and cookies: the name of each there, by the name of the parameter."""

    headers: dict[str, str]
    cookies: dict[str, str]

    @property
    def names(self) -> set[str]:
        """The names of the parameters."""
        return {*self.headers, *self.cookies}


def fields(parameters: tuple[Parameter, ...], label: str) -> Fields:
    """The parameters that are marked `http.Header` or `http.Cookie`.

    Args:
        label: the method, for errors.

    Raises:
        BadDeclaration: markers contradict each other, or two parameters read the same field.
    """
    found = Fields({}, {})
    taken: dict[str, str] = {}
    for parameter in parameters:
        markers = markers_of(parameter)
        marker = next((each for each in markers if isinstance(each, Header | Cookie)), None)
        if marker is None:
            continue
        what = f'{label}: argument "{parameter.name}"'
        if len(markers) > 1:
            raise BadDeclaration(f"{what} has two markers of http; keep one")
        header = isinstance(marker, Header)
        name = marker.name or (_header_name(parameter.name) if header else parameter.name)
        key = f"header {name.lower()}" if header else f"cookie {name}"
        if key in taken:
            raise BadDeclaration(f'{what} and "{taken[key]}" both read the {key}; use one parameter for it')
        taken[key] = parameter.name
        (found.headers if header else found.cookies)[parameter.name] = name
    return found


def markers_of(parameter: Parameter) -> list[Any]:
    """The markers of http in the annotation of a parameter."""
    found: list[Any] = []
    for each in getattr(parameter.type, "__metadata__", ()):
        if each is Header or each is Cookie:
            found.append(each())
        elif isinstance(each, HttpSource | Header | Cookie):
            found.append(each)
    return found


def _header_name(parameter: str) -> str:
    """`user_agent` → `User-Agent`."""
    return "-".join(part.capitalize() for part in parameter.strip("_").split("_"))


def sources(
    verb: str,
    path_names: list[str],
    parameters: tuple[Parameter, ...],
    label: str = "the method",
    *,
    uploads: bool = False,
) -> dict[str, Source]:
    """Where a route finds each parameter that is neither a header field nor a cookie (see `fields`).

    - A name in the path: the path.
    - A marked parameter: the place that its marker names.
    - GET and DELETE: everything else in the query.
    - POST, PUT and PATCH: if exactly one parameter is `bytes` or structured (Struct, dataclass, TypedDict, dict, list),
      or marked `http.Body`, it is the whole body, and the others are in the query. Otherwise all are members of a JSON
      object.

    Args:
        path_names: the names in the route's path.
        label: the method, for errors.
        uploads: the body is a client stream, so all other parameters are in path, query, header fields and cookies.

    Raises:
        BadDeclaration: markers contradict each other, the path or the verb.
    """
    if uploads and verb in ("GET", "DELETE"):
        raise BadDeclaration(f"{label} takes a stream of items, and a {verb} has no body; use @http.post")
    elsewhere = fields(parameters, label).names
    for name in path_names:
        if name in elsewhere:
            raise BadDeclaration(
                f'{label}: argument "{name}" is in the path, and marked http.Header or http.Cookie; keep one'
            )
    parameters = tuple(parameter for parameter in parameters if parameter.name not in elsewhere)
    bodiless = uploads or verb in _BODILESS
    marked = _marked(bodiless, path_names, parameters, label)
    found: dict[str, Source] = dict.fromkeys(path_names, "path")
    found.update(marked)
    rest = [parameter for parameter in parameters if parameter.name not in found]
    if bodiless:
        other: Source = "query"
    elif "body" in marked.values():
        other = "query"
    elif "field" in marked.values():
        other = "field"
    else:
        bodies = [parameter for parameter in rest if parameter.shape != "scalar"]
        if len(bodies) == 1:
            found[bodies[0].name] = "body"
            other = "query"
        else:
            other = "field"
    for parameter in rest:
        found.setdefault(parameter.name, other)
    return {parameter.name: found[parameter.name] for parameter in parameters}


def _marked(bodiless: bool, path_names: list[str], parameters: tuple[Parameter, ...], label: str) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for parameter in parameters:
        markers = markers_of(parameter)
        if not markers:
            continue
        what = f'{label}: argument "{parameter.name}"'
        source = markers[0].source
        if len(markers) > 1:
            raise BadDeclaration(f"{what} has two markers of http; keep one")
        if parameter.name in path_names:
            raise BadDeclaration(f"{what} is in the path, and marked http.{source.title()}; remove the marker")
        if bodiless and source != "query":
            raise BadDeclaration(
                f"{what} is marked http.{source.title()}, and the request has no body for it; use http.Query"
            )
        found[parameter.name] = source
    places = list(found.values())
    if places.count("body") > 1:
        raise BadDeclaration(f"{label}: two arguments are marked http.Body; use http.Field to have both in one object")
    if "body" in places and "field" in places:
        raise BadDeclaration(f"{label}: http.Body is the whole body and cannot be combined with http.Field")
    return found

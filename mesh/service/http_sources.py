"""Where in an HTTP request the parameters of a method are found.

Owns: the rule, and the markers that override it.
Leaves to others: applying it to a request (gateway.binding), how parameters are declared (calls.declared).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mesh.calls.declared import BadDeclaration, Parameter
from mesh.discovery.record import Source

#: HTTP verbs without a request body.
_BODILESS: Final = frozenset({"GET", "DELETE"})


class HttpSource(NamedTuple):
    """A marker in `Annotated[T, …]`: `http.Body`, `http.Query` or `http.Field`."""

    source: Source


def sources(
    verb: str, path_names: list[str], parameters: tuple[Parameter, ...], label: str = "the method"
) -> dict[str, Source]:
    """Where a route finds each parameter.

    - A name in the path: the path.
    - A marked parameter: the place that its marker names.
    - GET and DELETE: everything else in the query.
    - POST, PUT and PATCH: if exactly one parameter is `bytes` or structured (Struct, dataclass, TypedDict, dict, list),
      or marked `http.Body`, it is the whole body, and the others are in the query. Otherwise all are members of a JSON
      object.

    Args:
        path_names: the names in the route's path.
        label: the method, for errors.

    Raises:
        BadDeclaration: markers contradict each other, the path or the verb.
    """
    marked = _marked(verb, path_names, parameters, label)
    found: dict[str, Source] = dict.fromkeys(path_names, "path")
    found.update(marked)
    rest = [parameter for parameter in parameters if parameter.name not in found]
    if verb in _BODILESS:
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


def _marked(verb: str, path_names: list[str], parameters: tuple[Parameter, ...], label: str) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for parameter in parameters:
        markers = [each for each in getattr(parameter.type, "__metadata__", ()) if isinstance(each, HttpSource)]
        if not markers:
            continue
        what = f'{label}: argument "{parameter.name}"'
        source = markers[0].source
        if len(markers) > 1:
            raise BadDeclaration(f"{what} has two markers of http; keep one")
        if parameter.name in path_names:
            raise BadDeclaration(f"{what} is in the path, and marked http.{source.title()}; take the marker away")
        if verb in _BODILESS and source != "query":
            raise BadDeclaration(f"{what} is marked http.{source.title()}, and a {verb} has no body; use http.Query")
        found[parameter.name] = source
    places = list(found.values())
    if places.count("body") > 1:
        raise BadDeclaration(f"{label}: two arguments are marked http.Body; use http.Field to have both in one object")
    if "body" in places and "field" in places:
        raise BadDeclaration(f"{label}: http.Body is the whole body, so that no argument can be an http.Field of it")
    return found

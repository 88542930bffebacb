"""Tasks that wait for each other: chains, groups, and callbacks of groups.

Owns: the compositions (pure values), and compiling them to rows that are deferred in one commit.
Leaves to others: finding a step's task (node.targets), making the next step ready (engines), and calling
`with_prior`, which puts the answer in the place of `prior` (attempt).

::

    await self.chain(step(self.fetch, url), step(self.resize, mesh.prior, 256), step(self.save, mesh.prior))
    await self.group(*(step(self.thumbnail, name) for name in names), then=step(self.finish, album_id))

`prior` stands for the answer of the previous step; after a group, for the list of its members' answers, in their order.
A step without `prior` runs after the previous steps without their answers.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple, ParamSpec, overload

import msgspec

from mesh.errors import BadArguments
from mesh.tasks.contract import NewTask
from mesh.tasks.deferring import NO_OPTIONS, PRIOR_META, Options, Target, arguments, new_task
from mesh.tasks.options import Duration

P = ParamSpec("P")


class _Prior:
    """The answer of the previous step; in the callback of a group, the list of its members' answers:
    `mesh.step("images.scale", mesh.prior, 200)`."""

    def __repr__(self) -> str:
        return "mesh.prior"


#: The answer of the previous step; in the callback of a group, the list of its members' answers.
prior: Final[Any] = _Prior()


class Step(NamedTuple):
    """One task with its arguments, not deferred yet. Made by `step`."""

    task: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    how: Options = NO_OPTIONS

    def options(
        self,
        *,
        key: str = "",
        delay: Duration | None = None,
        at: datetime | float | None = None,
        priority: int | None = None,
        order: str = "",
        keep: Duration | None = None,
        timeout: Duration | None = None,
        meta: dict[str, str] | None = None,
    ) -> Step:
        """The same step, deferred in this way; see `Node.defer`."""
        return self._replace(how=Options(key, delay, at, priority, order, keep, timeout, meta))


class Chain(NamedTuple):
    """Parts that run one after another. Made by `chain`."""

    parts: tuple[Part, ...]


class Fan(NamedTuple):
    """Parts that run concurrently. Made by `group`."""

    parts: tuple[Part, ...]


Part = Step | Chain | Fan


@overload
def step(task: str, /, *args: Any, **kwargs: Any) -> Step: ...
@overload
def step(task: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Step: ...
def step(task: Any, /, *args: Any, **kwargs: Any) -> Step:
    """A task with its arguments, for `chain` and `group`: `step(self.charge, order_id)` or `step("mail.send", to=…)`.

    `mesh.prior` among the arguments stands for the answer of the previous step.

    Args:
        task: a task method of a service, or its name, "service.task".
        args, kwargs: its arguments.
    """
    return Step(task, args, kwargs)


def chain(*parts: Part | Callable[..., Any] | str) -> Chain:
    """Run parts one after another; each begins when the previous one is done.

    Args:
        parts: steps, groups, or bare tasks without arguments.

    Raises:
        BadArguments: there is no part.

    Example::

        job = await n.defer(mesh.chain(mesh.step("images.fetch", url), mesh.step("images.scale", mesh.prior, 200)))
    """
    if not parts:
        raise BadArguments("a chain needs at least one step")
    return Chain(tuple(map(_part, parts)))


def group(*parts: Part | Callable[..., Any] | str, then: Part | Callable[..., Any] | str | None = None) -> Part:
    """Run parts concurrently.

    Args:
        parts: steps, chains, or bare tasks without arguments.
        then: a part that begins when all of them are done; `mesh.prior` in it is the list of their answers.

    Raises:
        BadArguments: there is no part.

    Example::

        pages = [mesh.step("books.scan", number) for number in range(10)]
        job = await n.defer(mesh.group(*pages, then=mesh.step("books.bind", mesh.prior)))
    """
    if not parts:
        raise BadArguments("a group needs at least one member")
    fan = Fan(tuple(map(_part, parts)))
    return fan if then is None else Chain((fan, _part(then)))


def _part(part: Any) -> Part:
    return part if isinstance(part, Step | Chain | Fan) else Step(part)


# --- into rows --------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One task of a composition, ready to be deferred."""

    task: NewTask
    target: Target


class Rows(NamedTuple):
    """A composition, or a part of one, as rows.

    Attributes:
        rows: the rows of the whole composition so far, each after the rows that it waits for.
        tails: indexes in `rows` of the tasks that give the part's answer.
        fan: whether that answer is a list, even of one item.
    """

    rows: list[Row]
    tails: list[int]
    fan: bool = False


def compile(part: Part, resolve: Callable[[Any], Target], now: float, max_bytes: int) -> Rows:
    """Compile a composition to rows.

    Args:
        resolve: finds the target of a step's task.
        now: wall clock, for delays.
        max_bytes: limit of one step's arguments.

    Raises:
        BadArguments: a group follows another step, a first step uses `prior`, or arguments are wrong.
    """
    return _Compiling(resolve, now, max_bytes).add(part, Rows([], []))


class _Compiling(NamedTuple):
    resolve: Callable[[Any], Target]
    now: float
    max_bytes: int

    def add(self, part: Part, before: Rows) -> Rows:
        """Add the rows of a part that waits for the tails of `before`."""
        rows = before.rows
        if isinstance(part, Chain):
            for each in part.parts:
                before = self.add(each, before)
            return before
        if isinstance(part, Fan):
            if before.tails:
                raise BadArguments(
                    f"a group cannot follow another step: {rows[before.tails[0]].target.queue} would have to start "
                    "several tasks at once. Defer the group in a step instead"
                )
            return Rows(rows, [tail for each in part.parts for tail in self.add(each, Rows(rows, [])).tails], fan=True)
        row = self._row(part, bool(before.tails))
        if before.tails:
            waiting = msgspec.structs.replace(row.task, waits=len(before.tails), gathers=before.fan)
            row = row._replace(task=waiting)
            for place, tail in enumerate(before.tails):
                fed = msgspec.structs.replace(rows[tail].task, feeds=waiting.id, place=place)
                rows[tail] = rows[tail]._replace(task=fed)
        rows.append(row)
        return Rows(rows, [len(rows) - 1])

    def _row(self, part: Step, follows: bool) -> Row:
        """The row of one step. Each `prior` is encoded as nil, and its place is stored in the metadata."""
        target = self.resolve(part.task)
        places = [str(place) for place, value in enumerate(part.args) if value is prior]
        places += [name for name, value in part.kwargs.items() if value is prior]
        if not places:
            body = arguments(target, part.args, part.kwargs, self.max_bytes)
            return Row(new_task(target, body, part.how, self.now), target)
        if not follows:
            raise BadArguments(f"{target.queue}: mesh.prior is used in a first step, which has no prior result")
        args = tuple(None if value is prior else value for value in part.args)
        kwargs = {name: None if value is prior else value for name, value in part.kwargs.items()}
        # Not checked against the function: the type of the answer is not known yet.
        body = arguments(msgspec.structs.replace(target, check=None), args, kwargs, self.max_bytes)
        task = new_task(target, body, part.how, self.now)
        return Row(msgspec.structs.replace(task, meta={**task.meta, PRIOR_META: ",".join(places)}), target)


# --- at the worker ----------------------------------------------------------------------------------------

_ARRAY: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_MAP: Final = msgspec.msgpack.Decoder(dict[int | str, msgspec.Raw])
_pack: Final = msgspec.msgpack.Encoder().encode


def with_prior(body: bytes, places: str, answer: bytes) -> bytes:
    """Put the answer in its places in the arguments.

    Args:
        body: an array, a map of names, or a map that also has positions.
        places: "0" or "name", or several, separated by commas.
        answer: MessagePack.

    Raises:
        BadArguments: the body has no such places.
    """
    value = msgspec.Raw(answer or b"\xc0")
    try:
        if body[:1] and (body[0] >> 4 == 9 or body[0] in (0xDC, 0xDD)):
            array = _ARRAY.decode(body)
            for place in places.split(","):
                array[int(place)] = value
            return _pack(array)
        named = _MAP.decode(body)
        for place in places.split(","):
            key = int(place) if place.isdigit() else place
            if key not in named:
                raise KeyError(key)
            named[key] = value
        return _pack(named)
    except (msgspec.MsgspecError, ValueError, LookupError) as exc:
        raise BadArguments(f"the result of the previous step does not fit into the arguments: {exc}") from exc

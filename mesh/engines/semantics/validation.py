"""Validation of tasks, settlements, events, writes and locks: the rules that are the same for every engine. Pure.

Owns: lengths, ranges and names, and the errors that name the problem.
Leaves to others: checks that depend on stored data (each engine), tasks that feed others (semantics.chains).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final, get_args

from mesh.engines.semantics.chains import check_feeds
from mesh.errors import BadRequest
from mesh.events.log import NewEvent
from mesh.events.topics import BadTopic, check_topic
from mesh.state.contract import MAX_KEY, MAX_NAMESPACE, Write
from mesh.tasks.contract import PRIORITIES, NewTask, Settlement, Verdict

#: Maximum number of characters of an id, a queue, a key, an order, or a lock's name.
MOST_CHARS: Final = 1024
#: The latest instant, and the longest duration, in seconds: beyond the year 100,000.
LATEST: Final = 3.2e12

_VERDICTS: Final = frozenset(get_args(Verdict))


def is_name(text: str) -> bool:
    """Whether the text is a valid name."""
    return 0 < len(text) <= MOST_CHARS and text.isprintable()


def is_queue(text: str) -> bool:
    """Whether the text is a valid name of a queue."""
    return is_name(text) and "." in text


def check_tasks(tasks: Sequence[NewTask], known: Container[str] = ()) -> None:
    """Args:
    known: queues with a name that was checked before.

    Raises:
        BadRequest: a task is invalid, or `feeds` and `waits` are inconsistent.
    """
    chained = False
    for task in tasks:
        id = task.id
        # is_name, inlined: this runs for a hundred thousand tasks a second.
        named = 0 < len(id) <= MOST_CHARS and id.isprintable()
        if not named or (task.queue not in known and not is_queue(task.queue)):
            raise BadRequest(
                f'task {task.id[:80]!r} of queue {task.queue[:80]!r}: an id and a queue "service.task" are needed, '
                f"at most {MOST_CHARS} printable characters long"
            )
        if task.priority not in PRIORITIES:
            raise BadRequest(f"task {task.id} of {task.queue}: priority {task.priority!r} is not one of 0 to 9")
        # Written so that a NaN is rejected as well. Most tasks set no time except `keep_s`.
        if (task.due_at or task.delay_s or task.timeout_s or not 0 <= task.keep_s <= LATEST) and not (
            0 <= task.due_at <= LATEST
            and 0 <= task.delay_s <= LATEST
            and 0 <= task.keep_s <= LATEST
            and 0 <= task.timeout_s <= LATEST
        ):
            raise BadRequest(
                f"task {task.id} of {task.queue}: due_at {task.due_at!r}, delay_s {task.delay_s!r}, keep_s "
                f"{task.keep_s!r} or timeout_s {task.timeout_s!r} is not a number of seconds, 0 or more"
            )
        if len(task.key) > MOST_CHARS or len(task.order) > MOST_CHARS:
            raise BadRequest(f"task {task.id} of {task.queue}: a key or order is at most {MOST_CHARS} characters")
        if task.waits or task.feeds:
            chained = True
            if not 0 <= task.place < 2**31:
                raise BadRequest(f"task {task.id} of {task.queue}: place {task.place!r} is not a position in a list")
    if len(tasks) > 1 and len({task.id for task in tasks}) < len(tasks):
        raise BadRequest("a unit has two tasks with one id; make each with mesh.ids.job_id")
    if chained:
        check_feeds(tasks)


def check_settlement(each: Settlement) -> None:
    """Raises: BadRequest: the settlement is invalid."""
    if each.verdict not in _VERDICTS or not (0 <= each.due_at <= LATEST and 0 <= each.delay_s <= LATEST):
        raise BadRequest(
            f"job {each.id}: verdict {each.verdict!r} with due_at {each.due_at!r}, delay_s {each.delay_s!r} is not "
            "a valid acknowledgement"
        )


def check_events(events: Sequence[NewEvent]) -> None:
    """Raises: BadRequest: a topic is malformed, an event has no id, or a value in it cannot be stored."""
    valid = ""
    for event in events:
        # Most batches are of one topic; and is_name is written out, as in check_tasks.
        if event.topic != valid:
            try:
                valid = check_topic(event.topic)
            except BadTopic as exc:
                # BadRequest is one of the contract's errors, BadTopic is not.
                raise BadRequest(exc.message) from exc
        id = event.id
        if not (0 < len(id) <= MOST_CHARS and id.isprintable()) or len(event.key) > MOST_CHARS:
            raise BadRequest(f"event {valid}: an id and a key have at most {MOST_CHARS} (printable) characters")
        if not 0 <= event.at <= LATEST or not 0 <= event.encoding < 2**31:
            raise BadRequest(f"event {id} of {valid}: at {event.at!r}, encoding {event.encoding!r}")


def check_write(write: Write) -> None:
    """Raises: BadRequest: its namespace, key, verb or time to live is invalid."""
    for noun, text, most in (("namespace", write.namespace, MAX_NAMESPACE), ("key", write.key, MAX_KEY)):
        try:
            length = len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError as exc:
            raise BadRequest(f"{noun} {text[:80]!a} cannot be encoded in UTF-8") from exc
        if not 1 <= length <= most:
            raise BadRequest(f"{noun} {text[:80]!r} is {length} bytes long; 1 to {most} are allowed")
    if write.verb not in ("set", "delete", "add"):
        raise BadRequest(f"a write to {write.key!r} must be set, delete or add, not {write.verb!r}")
    if not 0 <= write.ttl_s <= LATEST:
        raise BadRequest(
            f"state {write.namespace}/{write.key}: ttl_s {write.ttl_s!r} is not a number of seconds, 0 or more"
        )


def check_lock(name: str, owner: str, ttl_s: float) -> None:
    """Raises: BadRequest: the name, the owner or the time is invalid."""
    if not 0 < len(name) <= MOST_CHARS or not 0 < len(owner) <= MOST_CHARS or not 0 < ttl_s <= LATEST:
        raise BadRequest(
            f"lock {name[:80]!r}, owner {owner[:80]!r}, ttl_s {ttl_s!r}: a name, an owner (at most {MOST_CHARS} "
            "characters) and a time above 0 are needed"
        )


def check_schedule(name: str, at: float) -> None:
    """Raises: BadRequest: the name is empty, or `at` is not an instant."""
    if not name or not 0 <= at <= LATEST:
        raise BadRequest(f"schedule {name[:80]!r}: a name and an instant are needed, not {at!r}")

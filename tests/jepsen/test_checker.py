"""The checker itself: for each promise a good history passes, and spoiled ones fail for the right reason."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from . import promises, register
from .check import judge, main
from .history import NEVER, Event, History, Operation, Recorder, assemble, read_events

OK, CONFLICT, FAIL, INFO = "ok", "conflict", "fail", "info"


def op(
    do: str, began_at: float, ended_at: float, status: str = OK, value: Any = None, result: Any = None, **more: Any
) -> Operation:
    """An operation on key "k"; `more` are further fields."""
    ended = NEVER if status == INFO else ended_at
    name = f"{do}@{began_at:g}"
    fields = {"id": name, "do": do, "key": "k", "value": value, "began_at": began_at, "ended_at": ended, **more}
    return Operation(status=status, result=result, **fields)  # type: ignore[arg-type]


def read(began_at: float, ended_at: float, value: str | None) -> Operation:
    return op("read", began_at, ended_at, result=[value, value or ""])


def swap(began_at: float, ended_at: float, old: str | None, new: str, status: str = OK) -> Operation:
    return op("swap", began_at, ended_at, status, [old, new], new)


def write(began_at: float, ended_at: float, new: str, status: str = OK) -> Operation:
    return op("set", began_at, ended_at, status, new, new)


def linearizable(*operations: Operation, barrier_at: float = NEVER) -> bool | None:
    return register.check(register.steps(operations, barrier_at)).ok


# --- registers ------------------------------------------------------------------------------------------------

GOOD = [
    swap(0, 1, None, "a"),
    read(1, 2, "a"),
    swap(2, 4, "a", "b"),
    read(3, 5, "a"),
    read(5, 6, "b"),
    swap(5, 6, "a", "c", CONFLICT),
]


def test_a_good_history_of_a_register_passes() -> None:
    assert linearizable(*GOOD) is True


@pytest.mark.parametrize(
    "spoiled",
    [
        pytest.param([*GOOD, read(7, 8, "a")], id="stale read"),
        pytest.param([*GOOD, read(7, 8, None)], id="lost write"),
        pytest.param([*GOOD, read(7, 8, "z")], id="value that nobody wrote"),
        pytest.param([*GOOD, read(7, 8, "c")], id="refused swap took effect"),
        pytest.param([*GOOD, swap(7, 8, "a", "d")], id="swap over an old value"),
        pytest.param([*GOOD, swap(7, 8, "b", "d", CONFLICT)], id="conflict with what is there"),
        pytest.param([*GOOD, swap(7, 9, "b", "d"), swap(7, 9, "b", "e")], id="two swaps of one value"),
        pytest.param(
            [write(0, 1, "a"), write(2, 3, "b"), read(4, 5, "b"), read(6, 7, "a")], id="older write comes back"
        ),
        pytest.param(
            [write(0, 9, "a"), write(0, 9, "b"), read(1, 2, "a"), read(3, 4, "b"), read(5, 6, "a")], id="to and fro"
        ),
        pytest.param([write(0, 1, "a", FAIL), read(2, 3, "a")], id="failed write is read"),
        pytest.param([read(0, 1, "a"), write(2, 3, "a")], id="read before it was written"),
        pytest.param([write(0, 1, "a"), op("delete", 2, 3), read(4, 5, "a")], id="deleted and read"),
    ],
)
def test_a_spoiled_history_of_a_register_fails(spoiled: Sequence[Operation]) -> None:
    assert linearizable(*spoiled) is False


def test_what_overlaps_may_be_in_any_order() -> None:
    """Writes side by side and a read across them; explained only by the order that the reads show."""
    assert linearizable(write(0, 9, "a"), write(0, 9, "b"), read(1, 2, "a"), read(3, 4, "b"), read(5, 6, "b")) is True
    # An end and a beginning at the same instant overlap.
    assert linearizable(write(0, 1, "a"), read(1, 2, None)) is True


# --- ambiguous operations -------------------------------------------------------------------------------------


def resolved(*operations: Operation, barrier_at: float) -> tuple[int, int, int]:
    """How many ambiguous operations happened, did not, and are open."""
    steps = register.steps(operations, barrier_at)
    assert register.check(steps).ok is True
    found = register.resolve(steps, barrier_at)
    return len(found.happened), len(found.not_happened), len(found.open)


def test_an_ambiguous_write_that_is_read_has_happened() -> None:
    lost = swap(1, 2, "a", "b", INFO)
    assert resolved(swap(0, 1, None, "a"), lost, read(3, 4, "b"), barrier_at=9) == (1, 0, 0)
    # Long after its caller gave up: still it happened once, at some moment before.
    assert resolved(swap(0, 1, None, "a"), lost, read(3, 4, "a"), read(5, 6, "b"), barrier_at=9) == (1, 0, 0)
    # By the swap that came upon it.
    assert resolved(swap(0, 1, None, "a"), lost, swap(3, 4, "b", "c"), read(5, 6, "c"), barrier_at=9) == (1, 0, 0)


def test_an_ambiguous_swap_whose_place_was_taken_has_not_happened() -> None:
    lost = swap(1, 2, "a", "b", INFO)
    assert resolved(swap(0, 1, None, "a"), lost, swap(3, 4, "a", "c"), barrier_at=9) == (0, 1, 0)
    # Nothing can happen after the barrier.
    assert resolved(swap(0, 1, None, "a"), lost, read(10, 11, "a"), barrier_at=9) == (0, 1, 0)


def test_an_ambiguous_operation_that_nothing_tells_of_is_open() -> None:
    assert resolved(swap(0, 1, None, "a"), swap(1, 2, "a", "b", INFO), read(3, 4, "a"), barrier_at=9) == (0, 0, 1)
    assert resolved(write(0, 1, "a", INFO), write(2, 3, "b"), barrier_at=9) == (0, 0, 1)


@pytest.mark.parametrize(
    "spoiled",
    [
        pytest.param([read(3, 4, "b"), read(5, 6, "a")], id="it happened and was undone"),
        pytest.param([read(0.5, 0.7, "b")], id="it happened before it was sent"),
        pytest.param([swap(3, 4, "a", "c"), read(5, 6, "b")], id="it cannot have happened, and is read"),
        pytest.param([swap(3, 4, "b", "c"), read(5, 6, "a")], id="it must have happened, and is not there"),
        pytest.param([read(3, 4, "b"), swap(5, 6, "b", "c"), read(7, 8, "b")], id="it happened twice"),
        pytest.param([read(21, 22, "b"), read(23, 24, "a")], id="undone after the barrier"),
        pytest.param([read(21, 22, "a"), read(23, 24, "b")], id="it happened after the barrier"),
    ],
)
def test_an_ambiguous_swap_does_not_excuse(spoiled: Sequence[Operation]) -> None:
    history = [swap(0, 0.2, None, "a"), swap(1, 2, "a", "b", INFO), *spoiled]
    assert linearizable(*history, barrier_at=20) is False


def test_many_ambiguous_writes_cost_little() -> None:
    """A frozen store leaves dozens of them on one key; the search must not grow exponentially with them."""
    lost = [write(1 + n / 100, 2, f"lost-{n}", INFO) for n in range(40)]
    chain = [swap(1, 2, f"v{n}", f"x{n}", INFO) for n in range(40)]
    rest = [write(3 + n, 3.5 + n, f"v{n}") for n in range(40)]
    assert linearizable(*lost, *chain, *rest, read(99, 100, "lost-7"), read(101, 102, "lost-9"), barrier_at=200) is True
    assert linearizable(*lost, *chain, *rest, read(99, 100, "lost-7"), read(101, 102, "v3"), barrier_at=200) is False


def brute_force(steps: Sequence[register.Step]) -> bool:
    """Try every order, for comparison."""

    def explained(left: frozenset[int], value: Any, now: float) -> bool:
        ends = [steps[number].ended_at for number in left if steps[number].required]
        if not ends:
            return True
        for number in left:
            step = steps[number]
            at = max(now, step.began_at)
            if at > min(ends) or at > step.ended_at:
                continue
            legal = {
                "read": step.value == value,
                "write": True,
                "swap": step.expected == value,
                "differs": step.expected != value,
            }[step.verb]
            after = step.value if step.verb in ("write", "swap") else value
            if legal and explained(left - {number}, after, at):
                return True
        return False

    return explained(frozenset(range(len(steps))), None, 0.0)


def test_it_agrees_with_trying_every_order() -> None:
    """Two thousand small histories by chance, good and bad."""
    rng = random.Random(5)
    verdicts = []
    for _ in range(2000):
        steps = []
        for _ in range(rng.randint(2, 7)):
            began_at = float(rng.randint(0, 10))
            verb = rng.choice(["read", "read", "write", "swap", "differs"])
            required = verb in ("read", "differs") or rng.random() < 0.7
            steps.append(
                register.Step(
                    verb,  # type: ignore[arg-type]
                    began_at,
                    began_at + rng.randint(1, 5) if required else rng.choice([max(began_at, 7.0), NEVER]),
                    value=rng.choice([None, "a", "b", "c"]) if verb == "read" else rng.choice("abc"),
                    expected=rng.choice([None, "a", "b", "c"]),
                    required=required,
                )
            )
        wanted = brute_force(steps)
        assert register.check(steps).ok is wanted, steps
        verdicts.append(wanted)
    assert 300 < sum(verdicts) < 1700


def test_a_value_has_one_etag() -> None:
    same = [swap(0, 1, None, "a"), read(1, 2, "a")]
    assert promises.etags(same) == []
    assert [each.kind for each in promises.etags([*same, op("read", 3, 4, result=["a", "other"])])] == ["etag"]
    assert [each.kind for each in promises.etags([*same, op("read", 3, 4, result=["b", "a"])])] == ["etag"]


# --- tasks, order ---------------------------------------------------------------------------------------------


def kinds(found: Sequence[promises.Violation]) -> list[str]:
    return sorted({each.kind for each in found})


def defer(key: str, status: str = OK, job: str | None = "j1") -> Operation:
    return op("defer", 0, 1, status, result=job if status == OK else None, key=key)


def test_tasks() -> None:
    """Confirmed: done once. In doubt: done or not. Refused: not done."""
    tries = [defer("t1"), defer("t2", INFO), defer("t2", OK, "j2"), defer("t3", INFO), defer("t4", FAIL)]
    done = [("t1", "j1"), ("t2", "j2")]
    assert promises.tasks(tries, done, []) == []
    assert promises.tasks(tries, [*done, ("t3", "j3")], []) == []
    assert kinds(promises.tasks(tries, done[:1], [])) == ["lost task"]
    assert kinds(promises.tasks(tries, [*done, ("t1", "j9")], [])) == ["double task"]
    assert kinds(promises.tasks(tries, [("t1", "j9"), done[1]], [])) == ["lost task"]
    assert kinds(promises.tasks(tries, [*done, ("t4", "j4")], [])) == ["refused task"]
    assert kinds(promises.tasks([*tries, defer("t1", OK, "j9")], done, [])) == ["double task"]
    assert kinds(promises.tasks(tries, done[:1], ["t2"])) == ["dead task"]


def test_order() -> None:
    sent = [op("emit", n, n + 0.5, value=n) for n in range(4)]
    assert promises.order(sent, [0, 1, 2, 3]) == []
    assert kinds(promises.order(sent, [0, 2, 1, 3])) == ["reordered"]
    assert kinds(promises.order(sent, [3, 0, 1, 2])) == ["reordered"]
    assert kinds(promises.order(sent, [0, 1, 2])) == ["lost delivery"]
    assert kinds(promises.order(sent, [0, 1, 1, 2, 3])) == ["double delivery"]
    assert kinds(promises.order(sent, [0, 1, 2, 3, 9])) == ["unknown delivery"]
    # One in doubt may come late, early enough, or never; it does not come before it was sent.
    doubt = [*sent[:1], op("emit", 1, 1.5, INFO, value=1), *sent[2:]]
    assert [promises.order(doubt, heard) for heard in ([0, 1, 2, 3], [0, 2, 3, 1], [0, 2, 3])] == [[], [], []]
    assert kinds(promises.order(doubt, [1, 0, 2, 3])) == ["reordered"]
    refused = [*sent[:1], op("emit", 1, 1.5, FAIL, value=1), *sent[2:]]
    assert kinds(promises.order(refused, [0, 1, 2, 3])) == ["refused delivery"]


# --- locks ----------------------------------------------------------------------------------------------------


def lock(began_at: float, granted_at: float, token: int, touches: Sequence[float]) -> Operation:
    return op("lock", began_at, granted_at, result=token, touches=list(touches))


def test_locks() -> None:
    first, second = lock(0, 1, 1, [2, 3]), lock(1, 4, 2, [5, 6])
    assert promises.locks([first, second]) == []
    # Frozen from 3 to 7: the step with which it wakes is forgiven, what follows is not.
    assert promises.locks([lock(0, 1, 1, [2, 3, 7]), second]) == []
    assert kinds(promises.locks([lock(0, 1, 1, [2, 3, 7, 7.02]), second])) == ["two holders"]
    assert kinds(promises.locks([lock(0, 1, 1, [2, 3, 5, 6]), second])) == ["two holders"]
    # Also when the third was granted it meanwhile.
    assert kinds(promises.locks([lock(0, 1, 1, [2, 8, 9]), second, lock(6, 7, 3, [])])) == ["two holders"]
    assert kinds(promises.locks([first, lock(1, 4, 1, [])])) == ["token"]
    assert kinds(promises.locks([lock(0, 1, 7, []), lock(2, 4, 6, [])])) == ["token"]
    assert kinds(promises.locks([lock(0, 1, 7, []), lock(2, 3, 8, []), lock(4, 5, 6, [])])) == ["token"]


def test_fences() -> None:
    one, two = swap(0, 1, None, "1:a"), swap(2, 3, "1:a", "2:b")
    assert promises.fences([one, two, swap(4, 5, "2:b", "2:c")]) == []
    assert kinds(promises.fences([one, two, swap(4, 5, "2:b", "1:d")])) == ["old token"]
    # Although what was there is not told of.
    assert kinds(promises.fences([one, two, swap(4, 5, "1:a", "1:d")])) == ["old token"]
    assert promises.fences([one, two, swap(4, 5, "2:b", "1:d", CONFLICT)]) == []


# --- the ledger -----------------------------------------------------------------------------------------------


def transfer(entry: str, amount: int, status: str = OK) -> Operation:
    return op("transfer", 0, 1, status, ["a", "b", amount], key=entry)


def test_the_ledger() -> None:
    transfers = [transfer("e1", 5), transfer("e2", 7, INFO), transfer("e3", 9, FAIL)]
    good = {"a": -5, "b": 5}
    assert promises.ledger([*transfers, op("sums", 0, 1, result={"a": -5, "b": 5})], ["e1"], good) == []
    assert promises.ledger(transfers, ["e1", "e2"], {"a": -12, "b": 12}) == []
    assert kinds(promises.ledger(transfers, [], {})) == ["lost entry"]
    assert kinds(promises.ledger(transfers, ["e1"], {"a": -5, "b": 4})) == ["sum"]
    assert kinds(promises.ledger(transfers, ["e1"], {"a": -10, "b": 10})) == ["sum"]
    assert kinds(promises.ledger(transfers, ["e1", "e3"], {"a": -14, "b": 14})) == ["refused entry"]
    assert kinds(promises.ledger(transfers, ["e1", "e1"], good)) == ["double entry"]
    assert kinds(promises.ledger(transfers, ["e1", "e9"], good)) == ["unknown entry"]
    assert kinds(promises.ledger([*transfers, op("sums", 0, 1, result={"a": -5})], ["e1"], good)) == ["sum"]


# --- the whole ------------------------------------------------------------------------------------------------


def test_a_saved_history_is_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a recorder wrote is read back, torn last lines left out; the exit code tells of a violation."""
    file = tmp_path / "history.jsonl"
    recorder = Recorder(file, "c")
    one = recorder.begin("swap", "k", [None, "a"])
    recorder.end(one, "ok", "etag-a")
    two = recorder.begin("read", "k")
    recorder.end(two, "ok", ["a", "etag-a"])
    recorder.begin("swap", "k", ["a", "b"])  # its process was killed
    recorder.close()
    with file.open("ab") as lines:
        lines.write(b'{"at":')
    history = assemble(read_events(file))
    assert [each.status for each in history.operations] == ["ok", "ok", "info"]
    report = judge(history)
    assert (report.ok, report.operations, report.count("info"), report.resolved) == (True, 3, 1, 0)
    monkeypatch.setattr("sys.argv", ["check", str(file)])
    assert main() == 0
    stale = assemble(
        [*read_events(file), Event(1e9, "invoke", "s", "read", "k"), Event(1e9 + 1, "ok", "s", value=[None, ""])]
    )
    assert kinds(judge(stale).violations) == ["not linearizable"]
    spoiled = file.read_bytes().rpartition(b"\n")[0] + b"\n"
    for event in (Event(1e9, "invoke", "s", "read", "k"), Event(1e9 + 1, "ok", "s", value=[None, ""])):
        spoiled += msgspec.json.encode(event) + b"\n"
    file.write_bytes(spoiled)
    assert main() == 1


def test_a_process_that_ends_by_itself_is_a_violation() -> None:
    history = History([], exits=[Event(1.0, "exit", key="store-0", value="exit code -6")])
    assert kinds(judge(history).violations) == ["crash"]

"""Several log files as one, in the order of time, through growth, rotation and whatever processes write."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mesh.supervisord.journal import Journal, Line, brief, chosen, files, keep


def stamp(second: float) -> str:
    return f"2026-11-22T02:00:{second:06.3f}Z"


def event(second: float, name: str, level: str = "info", more: str = "") -> str:
    return f'{{"ts":"{stamp(second)}","level":"{level}","event":"{name}"{more}}}\n'


def told(lines: list[Line]) -> list[str]:
    return [f"{line.process} {line.fields.get('event', line.text)}" for line in lines]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path


def test_lines_of_all_files_are_in_the_order_of_time(logs: Path):
    """And only the last of all together are shown."""
    (logs / "a.log").write_text(event(1, "one") + event(3, "three") + event(5, "five"))
    (logs / "b.log").write_text(event(2, "two") + event(4, "four"))
    assert told(Journal(files(logs)).last(4)) == ["b two", "a three", "b four", "a five"]
    assert Journal(files(logs)).last(0) == []


def test_a_traceback_stays_with_its_line(logs: Path):
    """What has no time of its own belongs to the line before, in its place and its level."""
    (logs / "a.log").write_text(event(1, "bad", "error") + "Traceback\n  ValueError: x\n" + event(4, "later"))
    (logs / "b.log").write_text(event(2, "meanwhile"))
    lines = Journal(files(logs)).last(10)
    assert told(lines) == ["a bad", "a Traceback", "a   ValueError: x", "b meanwhile", "a later"]
    assert told(list(keep(lines, "warning"))) == ["a bad", "a Traceback", "a   ValueError: x"]


def test_supervisords_own_lines_are_read(logs: Path):
    """Its time and its level stand in another form."""
    (logs / "supervisord.log").write_text("2026-11-22 02:00:01,500 WARN exited: hub (exit status 1; not expected)\n")
    (line,) = Journal(files(logs)).last(5)
    assert (line.level, line.fields["event"]) == ("warning", "exited: hub (exit status 1; not expected)")
    assert line.at % 60 == 1.5


def test_all_times_have_one_form(logs: Path, monkeypatch: pytest.MonkeyPatch):
    """RFC 3339 in UTC, wherever supervisord is."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        (logs / "supervisord.log").write_text(
            "2026-11-22 11:00:01,500 INFO success: hub\n2026-99-22 11:00:01,500 INFO x\n"
        )
        first, odd = Journal(files(logs)).last(5)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert first.fields["ts"] == stamp(1.5)
    assert odd.fields["ts"] == "2026-99-22 11:00:01.500"


def test_why_a_process_ended_is_an_error(logs: Path):
    """What `mesh` says of it, with the traceback before and the advice behind; nothing else that is plain."""
    end = (
        "loading\n"
        "      Traceback (most recent call last):\n"
        '        File "svc.py", line 4, in started\n'
        "mesh: svc.py:4, in started: ValueError: no\n"
        "      some advice\n"
        "again\n"
        "      not of an end\n"
    )
    (logs / "a.log").write_text(event(1, "begun") + end + event(2, "begun"))
    found = told(list(keep(Journal(files(logs)).last(20), "error")))
    assert [line.split()[1] for line in found] == ["Traceback", "File", "mesh:", "some"]
    assert found[2] == "a mesh: svc.py:4, in started: ValueError: no"


def test_one_trace_through_all_processes(logs: Path):
    """What belongs to one request, wherever it was written."""
    for name in ("a", "b"):
        (logs / f"{name}.log").write_text(event(1, "mine", more=',"trace_id":"f00"') + event(2, "other"))
    lines = Journal(files(logs)).last(10)
    assert told(list(keep(lines, trace="f00"))) == ["a mine", "b mine"]


def test_growth_is_followed_line_by_line(logs: Path):
    """Half a line waits for its other half."""
    path = logs / "a.log"
    path.write_text(event(1, "one"))
    journal = Journal(files(logs))
    journal.last(0)
    assert journal.new() == []
    whole = event(2, "two") + event(3, "three")
    with path.open("a") as file:
        file.write(whole[:-10])
        file.flush()
        assert told(journal.new()) == ["a two"]
        file.write(whole[-10:])
    assert told(journal.new()) == ["a three"]


def test_rotation_loses_nothing_that_is_new(logs: Path):
    """supervisor renames the file and begins another, or empties it (`supervisorctl clear`)."""
    path = logs / "a.log"
    path.write_text(event(1, "one"))
    journal = Journal(files(logs))
    journal.last(10)
    os.rename(path, logs / "a.log.1")
    path.write_text(event(2, "two"))
    assert told(journal.new()) == ["a two"]
    path.write_text("")
    assert journal.new() == []
    path.write_text(event(3, "3"))
    assert told(journal.new()) == ["a 3"]


def test_a_file_that_comes_later_is_read_from_its_beginning(logs: Path):
    """A service was scaled up."""
    (logs / "a_0.log").write_text(event(1, "one"))
    journal = Journal(files(logs))
    journal.last(10)
    (logs / "a_1.log").write_text(event(2, "born"))
    assert told(journal.new(files(logs))) == ["a_1 born"]


def test_only_the_end_of_a_large_file_is_read(logs: Path):
    """And exactly the lines that were asked for."""
    (logs / "a.log").write_text(
        "".join(event(1, f"line {number}", more=f',"x":"{"y" * 200}"') for number in range(2000))
    )
    lines = Journal(files(logs)).last(700)
    assert told(lines)[0] == "a line 1300"
    assert len(lines) == 700


def test_what_is_no_text_and_no_json_is_shown_as_it_is(logs: Path):
    """Nothing that a process writes ends the reading."""
    (logs / "a.log").write_bytes(b"\xff\xfe\n{not json\n[1]\n{}\n\n" + b'{"ts": 7, "level": null}\n')
    lines = Journal(files(logs)).last(10)
    assert [line.text for line in lines] == ["��", "{not json", "[1]", "{}", '{"ts": 7, "level": null}']
    assert list(keep(lines, "info"))


@pytest.mark.parametrize(
    ("line", "short"),
    [
        ('{"event":"hub.lost","reason":"no answer"}', "hub.lost: no answer"),
        ('{"event":"hub.lost","error":"E 1"}', "hub.lost: E 1"),
        ('{"event":"x.failed","reason":"r","exception":"Traceback\\nValueError: 7"}', "x.failed: ValueError: 7"),
        ('{"event":"worker.stopped"}', "worker.stopped"),
        ("Killed \n", "Killed"),
    ],
)
def test_a_line_in_brief_has_its_reason(line: str, short: str):
    """The event alone is only a name."""
    assert brief(line) == short


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        ([], ["greeting_0", "greeting_1", "hub", "x_1_0"]),
        (["greeting"], ["greeting_0", "greeting_1"]),
        (["greeting:*"], ["greeting_0", "greeting_1"]),
        (["greeting:greeting_1", "hub"], ["greeting_1", "hub"]),
        (["x_1"], ["x_1_0"]),
        (["x"], []),
    ],
)
def test_names_mean_what_supervisorctl_means_by_them(names: list[str], meant: list[str]):
    """A group, all of it, or one."""
    assert chosen(names, ["greeting_0", "greeting_1", "hub", "x_1_0"]) == meant

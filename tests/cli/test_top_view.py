"""`mesh top` without a terminal: what is drawn of a frame, and what each key does."""

from __future__ import annotations

import pytest
from rich.console import Console

from mesh.cli.top_view import COLUMNS, Screen, draw
from mesh.observe.board import Frame, Row, grouped
from mesh.observe.sampling import Sample
from mesh.supervisord.journal import Line


def row(name: str, *, state: str = "RUNNING", looping: bool = False, **measured: float) -> Row:
    group = name.partition(":")[0]
    pid = 100 if state == "RUNNING" else 0
    sample = Sample(pid, (group,), answered=True, **measured)  # type: ignore[arg-type]
    return Row(name, group, 1, int(state == "RUNNING"), state, pid, 65.0, looping, sample)


FRAME = Frame(
    host="box",
    busy=0.42,
    cores=2,
    load=1.5,
    memory=3 * 2**30,
    memory_total=8 * 2**30,
    processes=[
        row("hub", memory_bytes=20 * 2**20),
        row("greeting:greeting_0", rate=250.0, ended=250, mean_s=0.0021, p99_s=0.01, in_flight=3, cpu=0.51),
        row("greeting:greeting_1", rate=50.0, ended=50, mean_s=0.0041, p99_s=0.025, errors=2.0, cpu=0.11),
        row("reports:reports_0", state="BACKOFF", looping=True),
        row("gateway:gateway_0", rate=300.0, ended=300, mean_s=0.004, waiting=1),
    ],
    hubs=[("ipc:///x", True)],
    lines=[
        Line(0.0, "greeting_0", "info", {"event": "hello", "user": "x y"}, ""),
        Line(0.0, "hub", "error", {}, "plain text"),
    ],
)


def drawn(screen: Screen, frame: Frame = FRAME, height: int = 30, width: int = 140) -> list[str]:
    console = Console(width=width, height=height, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    try:
        console.print(draw(screen, frame, width, height))
        return [line.rstrip() for line in console.export_text().splitlines()]
    finally:
        console.file.close()


def names(screen: Screen) -> list[str]:
    return [each.name for each in screen.rows(FRAME)]


def test_services_are_shown_with_their_sums():
    """Rates and processor time add up, times are means of what was answered, states say how many run."""
    lines = drawn(Screen())
    assert lines[0].startswith(
        "mesh top · box   cpu 42% of 2   load 1.5   memory 3.0G of 8.0G   calls 300/s   http 300/s"
    )
    greeting = next(line for line in lines if line.startswith("greeting"))
    assert greeting.split() == [
        *("greeting", "RUNNING", "×2", "–", "1m", "5s", "300", "2.0", "2.4", "ms", "25.0", "ms", "3", "–", "62%", "–"),
    ]
    assert any(line.startswith("reports ") and "CRASH LOOP" in line for line in lines)
    assert any("hello user='x y'" in line for line in lines)
    assert any("plain text" in line for line in lines)


def test_a_service_of_which_some_do_not_run_says_how_many_do():
    """2 of 3, and the state of the worst in its colour."""
    (together,) = grouped([row("a:a_0"), row("a:a_1"), row("a:a_2", state="STOPPED")])
    assert (together.running, together.copies, together.state) == (2, 3, "STOPPED")
    half = FRAME._replace(processes=[row("a:a_0"), row("a:a_1", state="FATAL")])
    assert any(line.startswith("a       1 of 2") for line in drawn(Screen(), half))


def test_keys_move_sort_filter_and_group():
    """Each does what the help says of it."""
    screen = Screen()
    assert names(screen) == ["gateway", "greeting", "hub", "reports"]
    assert screen.selected == "gateway"
    screen.press("down", FRAME)
    screen.press("j", FRAME)
    screen.press("k", FRAME)
    assert screen.selected == "greeting"
    screen.press("g", FRAME)
    assert names(screen)[:2] == ["gateway:gateway_0", "greeting:greeting_0"]
    while COLUMNS[screen.sort].head != "calls/s":
        screen.press("s", FRAME)
    assert names(screen)[:3] == ["gateway:gateway_0", "greeting:greeting_0", "greeting:greeting_1"]
    screen.press("S", FRAME)
    assert names(screen)[-1] == "gateway:gateway_0"
    for key in "/GREET":
        screen.press(key, FRAME)
    assert names(screen) == ["greeting:greeting_1", "greeting:greeting_0"]
    screen.press("\x7f", FRAME)
    screen.press("\r", FRAME)
    assert screen.filter == "GREE"
    assert screen.selected.startswith("greeting")
    screen.press("/", FRAME)
    screen.press("\x1b", FRAME)
    assert screen.filter == "GREE"


def test_orders_name_what_is_selected():
    """+ and - scale its service, r restarts it; what lets a process leave asks for a y, and takes nothing else."""
    screen = Screen()
    screen.selected = "greeting"
    order = screen.press("+", FRAME)
    assert order is not None
    assert (order.kind, order.row.group if order.row else "", order.change) == ("scale", "greeting", 1)
    assert screen.press("-", FRAME) is None
    assert "greeting" in screen.said
    assert screen.press("-", FRAME) is None
    assert screen.press("y", FRAME) is None
    screen.press("-", FRAME)
    order = screen.press("y", FRAME)
    assert order is not None
    assert (order.kind, order.row.group if order.row else "", order.change) == ("scale", "greeting", -1)
    screen.selected = "reports"
    # None of them runs: nothing is lost.
    order = screen.press("-", FRAME)
    assert order is not None
    assert order.change == -1
    screen.selected = "greeting"
    assert screen.press("r", FRAME) is None
    assert "greeting" in screen.said
    assert screen.press("n", FRAME) is None
    assert screen.press("y", FRAME) is None
    screen.press("r", FRAME)
    order = screen.press("y", FRAME)
    assert order is not None
    assert (order.kind, order.row.name if order.row else "") == ("restart", "greeting")
    for key in ("q", "\x03"):
        order = screen.press(key, FRAME)
        assert order is not None
        assert order.kind == "quit"


def test_logs_are_of_all_of_the_selected_or_none():
    """l goes round."""
    screen = Screen()
    screen.selected = "greeting"
    assert (screen.logs, screen.log_names) == ("all", ())
    screen.press("l", FRAME)
    assert (screen.logs, screen.log_names) == ("none", ())
    screen.press("l", FRAME)
    assert (screen.logs, screen.log_names) == ("selected", ("greeting",))


@pytest.mark.parametrize("height", [6, 10, 16, 24, 60])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_into_any_terminal(height: int, width: int):
    """No line more than there is room for; the selected row is among those that are seen."""
    many = FRAME._replace(processes=[row(f"x:x_{number:02}") for number in range(40)])
    screen = Screen()
    screen.by_process = True
    screen.selected = "x:x_39"
    lines = drawn(screen, many, height, width)
    assert len(lines) <= height
    assert any(line.startswith("x:x_39   RUNNING") for line in lines)


def test_nothing_to_show_is_said():
    """Without a supervisord there is a table without rows, and why."""
    lines = drawn(
        Screen(), FRAME._replace(processes=[], lines=[], trouble="no supervisord answers; `mesh up` starts it")
    )
    assert lines[1] == "no supervisord answers; `mesh up` starts it"
    screen = Screen()
    empty = FRAME._replace(processes=[])
    assert all(screen.press(key, empty) is None for key in "+-rsSgjkl")


def test_the_help_names_the_keys():
    """All of them."""
    screen = Screen()
    screen.press("?", FRAME)
    text = "\n".join(drawn(screen, height=40))
    assert all(f" {key} " in text for key in ("s S", "g", "/", "l", "+ -", "r", "p", "q"))

"""One line per event, with the fields by which it is found again."""

import io
import json
import logging
import re
import warnings

import pytest
import structlog

from mesh.clock import ManualClock
from mesh.errors import ConfigError
from mesh.telemetry import logs, traces

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logs_as_they_were(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    logs.reset()
    yield
    logs.reset()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream():
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_the_fields_to_find_it_by(stream):
    """Time, level, event, process, trace and span come first, then what the call gave."""
    logs.configure("info", "json", stream, clock=ManualClock(), worker="w-1f", service="greeting", host="")
    token = traces.current.set(TRACE)
    try:
        logs.get_logger("mesh.calls").info("call refused", peer="w-2", in_flight=3)
    finally:
        traces.current.reset(token)
    (line,) = lines(stream)
    assert list(line.items()) == [
        ("ts", "2023-11-14T22:30:00.000Z"),
        ("level", "info"),
        ("event", "call refused"),
        ("worker", "w-1f"),
        ("service", "greeting"),
        ("trace_id", "0af7651916cd43dd8448eb211c80319c"),
        ("span_id", "b7ad6b7169203331"),
        ("logger", "mesh.calls"),
        ("peer", "w-2"),
        ("in_flight", 3),
    ]


def test_outside_of_a_trace_there_are_no_trace_fields(stream):
    """An empty field would look like a trace of its own."""
    logs.configure("info", "json", stream)
    logs.get_logger("a").info("x")
    assert not {"trace_id", "span_id"} & lines(stream)[0].keys()


def test_what_the_event_says_wins_over_what_the_process_is(stream):
    """In a worker of several services, the line's own service is the right one; bound context stands between."""
    logs.configure("info", "json", stream, service="first")
    logs.get_logger("a", service="second").info("x")
    structlog.contextvars.bind_contextvars(service="third", user="u1")
    logs.get_logger("a").bind(user="u2").info("x")
    assert [(line["service"], line.get("user")) for line in lines(stream)] == [("second", None), ("third", "u2")]


def test_the_standard_library_goes_the_same_way(stream):
    """Libraries that use logging give the same lines, their exceptions included."""
    logs.configure("info", "json", stream, worker="w")
    logging.getLogger("some.library").debug("not said")
    try:
        raise KeyError("gone")
    except KeyError:
        logging.getLogger("some.library").exception("lookup of %s failed", "x")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"], line["worker"]) == (
        "lookup of x failed",
        "error",
        "some.library",
        "w",
    )
    assert line["exception"].endswith("KeyError: 'gone'")


def test_structlog_itself_goes_the_same_way(stream):
    """A service that uses structlog as it knows it gives the same lines."""
    logs.configure("info", "json", stream, worker="w")
    structlog.get_logger().warning("as usual", n=1)
    assert lines(stream)[0].items() >= {"event": "as usual", "level": "warning", "worker": "w", "n": 1}.items()


def test_warnings_become_lines(stream):
    """A DeprecationWarning on stderr would be a line that no machine can read."""
    logs.configure("info", "json", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning("old ways", DeprecationWarning, "file.py", 1)
    assert "old ways" in lines(stream)[0]["event"]


@pytest.mark.parametrize("level", list(logs.LEVELS))
def test_what_is_less_than_the_level_is_not_said(stream, level):
    """Each level lets itself and what is worse through, for both ways of logging."""
    logs.configure(level, "json", stream)
    ours, theirs = logs.get_logger("a"), logging.getLogger("b")
    for name in logs.LEVELS:
        getattr(ours, name)(name)
        getattr(theirs, name)(name)
    expected = list(logs.LEVELS)[list(logs.LEVELS).index(level) :]
    assert [line["level"] for line in lines(stream)] == [name for name in expected for _ in range(2)]


def test_an_exception_is_one_line(stream):
    """A traceback stays within its line, so that a reader of lines keeps it whole."""
    logs.configure("info", "json", stream)
    secret = "hunter2"
    try:
        raise ValueError("bad")
    except ValueError:
        logs.get_logger("a").exception("handler raised")
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert "ValueError: bad" in line["exception"]
    assert secret not in stream.getvalue()


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value", [object(), {(1, 2): 3}, "\ud800", Unprintable(), b"\xff", float("nan"), {1, 2}, 2**70]
)
@pytest.mark.parametrize("format", ["json", "console"])
def test_no_value_stops_a_line(stream, value, format):
    """Whatever a field holds, the line is written, and is one."""
    logs.configure("info", format, stream)
    logs.get_logger("a").info("event", field=value)
    assert len(stream.getvalue().splitlines()) == 1
    if format == "json":
        assert lines(stream)[0]["event"] == "event"


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_stream_that_knows_ascii_only_gets_the_line_escaped(format):
    """Under an ASCII locale, or with half a character out of a file name, the line is there."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    logs.configure("info", format, stream)
    logs.get_logger("a").info("wrote", path="caf\u00e9\ud800")
    assert b"wrote" in raw.getvalue()
    assert raw.getvalue().count(b"\n") == 1


def test_people_get_colours_on_a_terminal_only(monkeypatch):
    """Console on a terminal is coloured; in a file, or with NO_COLOR, it is plain."""
    terminal, file, plain = Terminal(), io.StringIO(), Terminal()
    logs.configure("info", "auto", terminal)
    logs.get_logger("a").info("hello", n=1)
    logs.configure("info", "console", file)
    logs.get_logger("a").info("hello", n=1)
    monkeypatch.setenv("NO_COLOR", "1")
    logs.configure("info", "auto", plain)
    logs.get_logger("a").info("hello", n=1)
    assert "\x1b[" in terminal.getvalue()
    for stream in (file, plain):
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} \[info     ] hello +\[a] n=1\n", stream.getvalue())


def test_machines_get_json(stream):
    """ "auto" is JSON wherever it is not a terminal."""
    logs.configure("info", "auto", stream)
    logs.get_logger("a").info("hello")
    assert lines(stream)[0]["event"] == "hello"


def test_a_logger_follows_what_is_configured_later(stream):
    """Loggers are made at import, before anything is configured, and used after."""
    log = logs.get_logger("early")
    other = io.StringIO()
    logs.configure("info", "json", other)
    log.info("first")
    logs.configure("debug", "json", stream)
    log.debug("second")
    logging.getLogger("b").info("third")
    assert [line["event"] for line in lines(other)] == ["first"]
    assert [line["event"] for line in lines(stream)] == ["second", "third"]


def test_unconfigured_mesh_is_quiet_and_never_on_stdout(capsys):
    """In somebody's script, only warnings are said, on stderr: stdout belongs to the script."""
    log = logs.get_logger("a")
    log.info("link opened")
    log.warning("link lost")
    out, err = capsys.readouterr()
    assert out == ""
    assert "link lost" in err
    assert "link opened" not in err


def test_reset_leaves_nothing_behind(stream):
    """After it, the standard library's logging is as it was."""
    before = list(logging.getLogger().handlers)
    logs.configure("debug", "json", stream)
    assert len(logging.getLogger().handlers) == len(before) + 1
    logs.reset()
    assert logging.getLogger().handlers == before
    assert not structlog.is_configured()


def test_a_reader_that_went_away_stops_nobody(stream):
    """Writing to a closed stream is no error of who logs."""
    logs.configure("info", "json", stream)
    stream.close()
    logs.get_logger("a").info("unheard")


@pytest.mark.parametrize(("level", "format", "key"), [("loud", "json", "log.level"), ("info", "xml", "log.format")])
def test_a_wrong_setting_is_named_with_what_is_allowed(level, format, key):
    """The message has the key, the value and the choices."""
    with pytest.raises(ConfigError, match=rf'{key}: "(loud|xml)" is not one of .*(debug|console)'):
        logs.configure(level, format)


def test_muted_loggers_write_warnings_and_worse_only(stream: io.StringIO):
    """Only those that are named, and only their own lines."""
    logs.configure("info", "json", stream, muted=["mesh.store"])
    for name in ("mesh.store", "mesh.stores", "services.shop"):
        log = logs.get_logger(name)
        log.info("quiet")
        log.warning("loud")
    assert [(line["logger"], line["event"]) for line in lines(stream)] == [
        ("mesh.store", "loud"),
        ("mesh.stores", "quiet"),
        ("mesh.stores", "loud"),
        ("services.shop", "quiet"),
        ("services.shop", "loud"),
    ]

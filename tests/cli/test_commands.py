"""Commands against a real hub and a real worker, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from cli_project import Mesh, command, environment

from mesh.cli import exits


def until_said(child: subprocess.Popen[str], words: str) -> None:
    """Return when the child has written a line with `words` to stderr; fail when it ends before."""
    assert child.stderr is not None
    for line in child.stderr:
        if words in line:
            return
    pytest.fail(f"it ended without saying {words!r}")


# --- call ---------------------------------------------------------------------------------------------


def test_call_prints_the_answer(mesh: Mesh):
    """Text for people, JSON when asked for or when it is no text."""
    done = mesh("call", "greeting.hello", "name=ujun")
    assert (done.returncode, done.stdout, done.stderr) == (exits.OK, "Hello, ujun!\n", "")
    assert mesh("call", "greeting.hello", "123", "--json").stdout == '"Hello, 123!"\n'
    assert mesh("--json", "call", "greeting.hello", "x").stdout == '"Hello, x!"\n'
    assert json.loads(mesh("call", "greeting.add", "1", "b=2", "timeout=9").stdout) == {"sum": 3, "timeout": 9}


def test_call_prints_a_stream_as_a_line_per_item(mesh: Mesh):
    """That it is a stream is known from the registry."""
    assert mesh("call", "greeting.count", "3").stdout == "0\n1\n2\n"


def test_call_passes_binary_through(mesh: Mesh, tmp_path: Path):
    """From a file, to a file, byte for byte."""
    (tmp_path / "in").write_bytes(b"\x00\xff")
    done = mesh("call", "greeting.reverse", f"body=@{tmp_path}/in", "--output", str(tmp_path / "out"))
    assert done.returncode == exits.OK
    assert (tmp_path / "out").read_bytes() == b"\xff\x00"


def test_call_can_ask_every_instance(mesh: Mesh):
    """One line per instance, with its name."""
    lines = [json.loads(line) for line in mesh("call", "greeting.hello", "x", "--all").stdout.splitlines()]
    assert [line["value"] for line in lines] == ["Hello, x!"]
    assert lines[0]["instance"].startswith("greeting-")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("greeting.fail",), exits.FAILED, "OutOfStock: no more greetings"),
        (("greeting.hello",), exits.REFUSED, "name"),
        (("greeting.helo", "x"), exits.REFUSED, '"hello"?'),
        (("greeting.hello", "x", "--timeout", "soon"), exits.USAGE, "'soon'"),
    ],
)
def test_call_tells_why_it_failed(mesh: Mesh, words: tuple[str, ...], code: int, says: str):
    """One line on stderr, nothing on stdout, and an exit code to branch on."""
    done = mesh("call", *words)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_call_of_an_unknown_service_names_it(mesh: Mesh):
    """While the hub still learns who lives, such a call waits for its deadline; afterwards it is refused at once."""
    done = mesh("call", "nowhere.hello", "--timeout", "300ms")
    assert done.returncode in (exits.UNAVAILABLE, exits.REFUSED)
    assert "nowhere" in done.stderr


def test_without_a_hub_every_command_says_so(mesh: Mesh, tmp_path: Path):
    """Exit code 3, the address that was tried, and what to do."""
    (tmp_path / "mesh.toml").write_text('[mesh]\nhubs = ["tcp://127.0.0.1:1"]\n')
    done = mesh("call", "greeting.hello", "x", cwd=tmp_path)
    assert done.returncode == exits.UNAVAILABLE
    assert "tcp://127.0.0.1:1" in done.stderr
    assert "mesh up" in done.stderr
    done = mesh("ps", cwd=tmp_path)
    assert done.returncode == exits.UNAVAILABLE
    assert "tcp://127.0.0.1:1" in done.stderr


@pytest.mark.parametrize("words", [("tasks",), ("jobs", "show", "x"), ("events", "read"), ("state",)])
def test_what_waits_for_a_store_says_so(mesh: Mesh, words: tuple[str, ...]):
    """After a second, to whoever reads stderr. (The last try begins up to a second before the time is over.)"""
    done = mesh(*words, env={"MESH_TASKS_DEFER_TIMEOUT": "3s"})
    assert done.returncode == exits.UNAVAILABLE
    first, second, *_ = done.stderr.splitlines()
    assert "3 s" in first
    assert "`mesh logs store`" in first
    assert second.startswith("mesh: ")
    assert done.stdout == ""


# --- ps -----------------------------------------------------------------------------------------------


def test_ps_shows_instances_and_methods(mesh: Mesh):
    """What a hub knows, for people and as JSON."""
    table = mesh("ps").stdout
    assert "greeting-" in table
    assert "\x1b" not in table
    data = json.loads(mesh("ps", "--json").stdout)
    assert data["instances"][0]["service"] == "greeting"
    assert data["instances"][0]["methods"] == ["add", "count", "fail", "hello", "reverse"]
    assert data["hubs"][0]["link"] == "open"
    methods = mesh("ps", "--methods").stdout
    assert [line.split()[0] for line in methods.splitlines()[2:]] == [
        "greeting.add",
        "greeting.count",
        "greeting.fail",
        "greeting.hello",
        "greeting.reverse",
    ]


# --- events -------------------------------------------------------------------------------------------


def test_what_is_emitted_is_heard(project: Path, mesh: Mesh):
    """`listen` prints what matches, `emit` sends maps, values and nothing at all."""
    child = subprocess.Popen(
        command("listen", "order.*", "--count", "3", "--timeout", "15", "--json"),
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until_said(child, "order.*")
    assert mesh("emit", "order.created", "id=17", "who=ujun").returncode == exits.OK
    assert mesh("emit", "other.created", "1").returncode == exits.OK
    assert json.loads(mesh("emit", "order.paid", "[1,2]", "--json").stdout) == {"topic": "order.paid", "data": [1, 2]}
    assert mesh("emit", "order.done").returncode == exits.OK
    heard, _ = child.communicate(timeout=20)
    assert child.returncode == exits.OK
    events = [json.loads(line) for line in heard.splitlines()]
    assert [(event["topic"], event["data"]) for event in events] == [
        ("order.created", {"id": 17, "who": "ujun"}),
        ("order.paid", [1, 2]),
        ("order.done", None),
    ]


def test_listen_ends_with_its_time(mesh: Mesh):
    """Nothing came that was waited for: exit code 3."""
    assert mesh("listen", "never", "--count", "1", "--timeout", "200ms").returncode == exits.UNAVAILABLE


def test_a_bad_topic_is_refused(mesh: Mesh):
    """Dots at the end lead nowhere."""
    done = mesh("emit", "order.")
    assert done.returncode == exits.REFUSED
    assert "order." in done.stderr


# --- shell --------------------------------------------------------------------------------------------


def test_shell_runs_a_line_with_await(mesh: Mesh):
    """`-c` for scripts."""
    done = mesh("shell", "-c", 'print(await n.rpc.greeting.hello("c"))')
    assert (done.returncode, done.stdout) == (exits.OK, "Hello, c!\n")


def test_shell_reads_lines_from_a_pipe(mesh: Mesh):
    """Values are shown, names are kept, an error ends its line only and shows no line of mesh."""
    typed = [
        'x = await n.call("greeting.hello", "pipe")',
        "x",
        "async for i in n.rpc.greeting.count(2): print(i)",
        "",
        'await n.call("nowhere.x")',
        "1 / 0",
        "'still here'",
        "",
    ]
    done = mesh("shell", stdin="\n".join(typed))
    assert done.returncode == exits.OK
    assert done.stdout.splitlines() == ["'Hello, pipe!'", "0", "1", "'still here'"]
    assert "UnknownService: " in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "console.py" not in done.stderr


@pytest.mark.parametrize("prompt", ["--plain", "ipython"])
def test_shell_on_a_terminal_completes_and_survives_ctrl_c(project: Path, prompt: str):
    """Tab knows services and methods; Ctrl-C ends the line, not the shell; both prompts."""
    pexpect = pytest.importorskip("pexpect")
    words = ["shell", "--plain"] if prompt == "--plain" else ["shell"]
    program, *arguments = command(*words)
    # A home of its own: histories and start-up files of whoever runs the tests stay out of it. IPython suggests a whole
    # line while one types, and then draws of a completion only what the suggestion had not drawn: perhaps nothing.
    profile = project / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_config.py").write_text("c.TerminalInteractiveShell.autosuggestions_provider = None\n")
    env = environment(
        {"HOME": str(project), "IPYTHONDIR": str(project / "ipython"), "NO_COLOR": "1", "PROMPT_TOOLKIT_NO_CPR": "1"}
    )
    child = pexpect.spawn(program, arguments, cwd=project, env=env, timeout=20, encoding="utf8", dimensions=(40, 160))
    try:
        child.expect("`n` is connected")
        child.expect(">>> " if prompt == "--plain" else r"In \[")
        child.send('await n.rpc.greeting.hello("tty")\r')
        child.expect("Hello, tty!")
        # A Tab that is typed before the prompt is there completes nothing.
        child.expect(">>> " if prompt == "--plain" else r"In \[")
        # What a prompt draws of a completion begins where the typed word ended.
        child.send("await n.rpc.gre\t")
        child.expect("eting")
        child.send(".hel\t")
        child.expect(r"lo\(")
        child.send('"tab")\r')
        child.expect("Hello, tab!")
        child.expect(">>> " if prompt == "--plain" else r"In \[")
        child.send("print('be' + 'gun'); await asyncio.sleep(30)\r")
        child.expect("begun")
        child.sendintr()
        child.expect("interrupted|KeyboardInterrupt")
        child.send("40 + 2\r")
        child.expect("42")
        child.send("exit()\r")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)


# --- run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), exits.USAGE, "mesh run services.greeting:Greeting"),
        (("nowhere:Greeting",), exits.FAILED, "nowhere"),
        (("greet:Nobody",), exits.FAILED, "'Nobody'; it has Greeting"),
        (("json",), exits.FAILED, "mesh.Service"),
    ],
)
def test_run_tells_which_word_leads_nowhere(mesh: Mesh, words: tuple[str, ...], code: int, says: str):
    """A mistyped name is not a traceback."""
    done = mesh("run", *words)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_run_leaves_with_zero_on_sigterm(project: Path, mesh: Mesh):
    """A second instance by file name: it appears, it is asked to stop, it is gone."""
    child = subprocess.Popen(
        command("run", "greet.py"), cwd=project, env=environment(), stderr=subprocess.PIPE, text=True
    )
    until_said(child, '"worker.ready"')
    assert child.pid in [each["pid"] for each in json.loads(mesh("ps", "--json").stdout)["instances"]]
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=10)
    assert child.returncode == 0
    assert child.pid not in [each["pid"] for each in json.loads(mesh("ps", "--json").stdout)["instances"]]


def test_run_with_reload_starts_again_on_a_change(project: Path, mesh: Mesh):
    """An edit is answered by a new process; Ctrl-C ends both."""
    (project / "edited.py").write_text("import mesh\n\nclass Edited(mesh.Service):\n    version = '1'\n")
    child = subprocess.Popen(
        command("run", "edited", "--reload"), cwd=project, env=environment(), stderr=subprocess.PIPE, text=True
    )

    def version() -> str:
        instances = json.loads(mesh("ps", "--json").stdout)["instances"]
        return next((each.get("version", "") for each in instances if each["service"] == "edited"), "")

    try:
        until_said(child, '"worker.ready"')
        assert version() == "1"
        # A change within the same second must be seen as well: another length.
        (project / "edited.py").write_text("import mesh\n\nclass Edited(mesh.Service):\n    version = '2.0'\n")
        until_said(child, "edited.py")
        until_said(child, '"worker.ready"')
        assert version() == "2.0"
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=10)
        assert child.returncode == exits.OK
        assert version() == ""
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()


# --- gateway ------------------------------------------------------------------------------------------


def test_gateway_refuses_a_descriptor_that_is_no_socket(mesh: Mesh):
    """--fd is for supervisor; a hand that types it learns of --port."""
    done = mesh("gateway", "--fd", "0")
    assert done.returncode == exits.USAGE
    assert "--port" in done.stderr


def test_output_to_a_closed_pipe_is_no_error(project: Path):
    """`mesh ps | head -0` says nothing on stderr."""
    read, write = os.pipe()
    os.close(read)
    child = subprocess.Popen(
        command("call", "greeting.count", "1000"), cwd=project, env=environment(), stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    _, told = child.communicate(timeout=20)
    assert child.returncode == exits.UNHEARD
    assert told == b""

"""Program files say to supervisor what mesh.toml meant, and stay readable whatever happens to their writing."""

from __future__ import annotations

import shlex
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from supervisor.options import ServerOptions

from mesh.config import MeshSettings, ServiceSettings, Settings, load
from mesh.errors import ConfigError, LockTaken, SetupError
from mesh.supervisord import layout
from mesh.supervisord.programs import SIGN, owner, roles
from mesh.supervisord.roster import Roster

CONF = """\
[unix_http_server]
file=%(here)s/run/supervisor.sock
[rpcinterface:mesh]
supervisor.rpcinterface_factory=mesh.supervisord.plugin:make
[supervisord]
childlogdir=%(here)s
logfile=%(here)s/supervisord.log
pidfile=%(here)s/supervisord.pid
[include]
files=run/programs/*.conf
[program:hub]
command=mesh hub
priority=10
"""


def parsed(root: Path) -> dict[str, Any]:
    """What supervisor itself reads: its groups by name, in the order in which they start."""
    options = ServerOptions()
    try:
        options.realize(["-c", str(root / "supervisord.conf")])
        return {group.name: group for group in options.process_group_configs}
    finally:
        options.poller.close()


def written(root: Path, toml: str, conf: str = CONF) -> Roster:
    (root / "supervisord.conf").write_text(conf)
    (root / "mesh.toml").write_text(textwrap.dedent(toml))
    (root / "logs").mkdir(exist_ok=True)
    roster = Roster(layout.read(root / "supervisord.conf"), load(root / "mesh.toml", env={}))
    roster.refresh()
    return roster


def environment_of(value: str) -> Mapping[str, str]:
    """The environment that a worker gets for `environment = { X = value }`."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "logs").mkdir()
        (root / "supervisord.conf").write_text(CONF)
        service = ServiceSettings(classes=["a:A"], environment={"X": value, "Y": "y"})
        made = roles(Settings(mesh=MeshSettings(log_dir=root / "logs"), services={"greeting": service}, root=root))[
            "greeting"
        ]
        (root / "run/programs").mkdir(parents=True)
        for name, text in made.files({0: made.text(0)}).items():
            (root / "run/programs" / name).write_text(text)
        return dict(parsed(root)["greeting"].process_configs[0].environment)


def test_supervisor_reads_what_was_meant(tmp_path: Path):
    """Names, order, command, directory, environment, stop time, log: one group for each service, one process each."""
    written(
        tmp_path,
        """
        [gateway]
        port = 8081
        replicas = 3
        drain = "2500ms"
        [services.zebra]
        class = ["animals:Zebra", "animals:Horse"]
        replicas = 2
        stop_timeout = "1m30s"
        environment = { LANG = "C", GREETING = "100% 'sure', yes" }
        env_file = "zebra env"
        memory = "512MiB"
        files = 4096
        nice = 5
        [services.ant]
        class = "animals:Ant"
        [services.quiet]
        concurrency = 3
        """,
    )
    groups = parsed(tmp_path)
    assert list(groups) == ["hub", "zebra", "ant", "gateway"]
    assert [process.name for process in groups["zebra"].process_configs] == ["zebra_0", "zebra_1"]
    second = groups["zebra"].process_configs[1]
    assert second.command == (
        f"mesh run --as zebra animals:Zebra animals:Horse --env-file '{tmp_path}/zebra env' "
        "--limit memory=536870912 --limit files=4096 --limit nice=5"
    )
    assert second.directory == str(tmp_path)
    assert second.environment == {
        "LANG": "C",
        "GREETING": "100% 'sure', yes",
        "MESH_WORKER_STOP_TIMEOUT": "90s",
    }
    assert second.stopwaitsecs == 100
    assert second.stdout_logfile == f"{tmp_path}/logs/zebra_1.log"
    assert groups["ant"].process_configs[0].stopwaitsecs == 40
    gateways = groups["gateway"]
    assert gateways.socket_config.url == "tcp://127.0.0.1:8081"
    assert [process.name for process in gateways.process_configs] == ["gateway_0", "gateway_1", "gateway_2"]
    assert gateways.process_configs[2].stdout_logfile == f"{tmp_path}/logs/gateway_2.log"
    assert gateways.process_configs[0].stopwaitsecs == 13


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("a \"'%;#,={}()$\\\n\tä.:/"), max_size=12))
def test_a_value_reaches_the_worker_as_it_is_or_is_refused(value: str):
    """supervisor's syntax has no escapes: what it cannot say is an error, never another value."""
    try:
        found = environment_of(value)
    except ConfigError:
        assert "\n" in value or " #" in value or " ;" in value or "\t" in value or set(value) & set("'\"")
    else:
        assert found == {"X": value, "Y": "y"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from("a \"'%;#,={}()$\\\n\tä.:/"), max_size=8), min_size=1, max_size=3))
def test_a_command_reaches_its_program_as_it_is_or_is_refused(words: list[str]):
    """The words after `--` are those of mesh.toml, whatever supervisor and its quoting make of others."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "logs").mkdir()
        (root / "supervisord.conf").write_text(CONF)
        service = ServiceSettings(command=["run", *words], health="/x%20y")
        try:
            made = roles(Settings(mesh=MeshSettings(log_dir=root / "logs"), services={"shop": service}, root=root))
        except ConfigError:
            assert any(sign in word for word in words for sign in ("\n", " ;", " #", "\t;", "\t#"))
            return
        (root / "run/programs").mkdir(parents=True)
        for name, text in made["shop"].files({0: made["shop"].text(0)}).items():
            (root / "run/programs" / name).write_text(text)
        command = shlex.split(parsed(root)["shop"].process_configs[0].command)
    assert command[:7] == ["mesh", "program", "shop", "--http", "127.0.0.1:{port}", "--health", "/x%20y"]
    assert command[7:] == ["--", "run", *words]


@pytest.mark.parametrize("value", ["", "plain", "a b", "100%", "a,b=c", 'say "x" twice', "it's", "{x}", "a;b#c"])
def test_usual_values_are_not_refused(value: str):
    """Only what really cannot be said is refused."""
    assert environment_of(value)["X"] == value


def test_a_release_keeps_its_directory_and_its_command(tmp_path: Path):
    """A worker's file names the release itself and not the link to the current one: a crash brings back what it was."""
    for name in ("1", "2"):
        (tmp_path / "releases" / name / ".venv/bin").mkdir(parents=True)
        (tmp_path / "releases" / name / ".venv/bin/mesh").write_text("")
        (tmp_path / "releases" / name / "mesh.toml").write_text('[services.greeting]\nclass = "a:A"\n')
    current = tmp_path / "current"
    current.symlink_to("releases/1")
    first = roles(load(current / "mesh.toml", env={}))["greeting"].text(0)
    current.unlink()
    current.symlink_to("releases/2")
    second = roles(load(current / "mesh.toml", env={}))["greeting"].text(0)
    assert f"directory={tmp_path}/releases/1\n" in first
    assert f"command={tmp_path}/releases/1/.venv/bin/mesh run --as greeting a:A\n" in first
    assert second == first.replace("releases/1", "releases/2").replace(str(tmp_path / "current"), str(current))


def test_another_copy_of_a_file_differs_in_its_number_alone(tmp_path: Path):
    """The spare one of a roll that goes back is the earlier release's, under another number."""
    service = ServiceSettings(classes=["a:A"])
    role = roles(Settings(services={"x_0": service}, root=tmp_path / "x_0"))["x_0"]
    assert role.renumbered(role.text(0), 0, 12) == role.text(12)


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('[services.hub]\nclass = "a:A"\n', r"hub\b"),
        ('[services.gateway]\nclass = "a:A"\n', r"services\.gateway: "),
        ('[services.x]\nclass = "a b; rm"\n', r'services\.x\.class: "a b; rm" '),
        ('[services.X]\nclass = "a:A"\n', r"services\.X: "),
        ('[gateway]\nhost = "::1"\n', r"gateway\.host: "),
        ('[services.x]\nclass = "a:A"\nenvironment = { "A B" = "c" }\n', r'"A B" '),
    ],
)
def test_what_cannot_be_run_is_told(tmp_path: Path, toml: str, says: str):
    """Before any file is written."""
    with pytest.raises(ConfigError, match=says):
        written(tmp_path, toml)
    assert not (tmp_path / "run/programs").exists()


def test_a_supervisord_conf_without_a_place_for_workers_is_told_what_to_add(tmp_path: Path):
    """A project from before: the lines that it lacks stand in the message."""
    with pytest.raises(ConfigError, match=r"\[include\] (?s:.*) \[services\.x\] (?s:.*)files=run/programs"):
        written(tmp_path, '[services.x]\nclass = "a:A"\n', CONF.replace("[include]\nfiles=run/programs/*.conf\n", ""))


def test_a_program_of_ones_own_is_left_alone(tmp_path: Path):
    """What somebody puts into the directory is supervisor's to read, and nobody's to change; a gateway of one's own
    in supervisord.conf takes the place of those of mesh.toml."""
    (tmp_path / "run/programs").mkdir(parents=True)
    mine = tmp_path / "run/programs/mine.conf"
    mine.write_text("[program:mine]\ncommand=sleep 1\n")
    written(tmp_path, "", CONF + "[program:front]\ncommand=mesh gateway --port 8082\n")
    assert mine.read_text().startswith("[program:mine]")
    assert list(parsed(tmp_path)) == ["hub", "front", "mine"]


# --- numbers and files --------------------------------------------------------------------------------

TWO = '[gateway]\nreplicas = 0\n[services.greeting]\nclass = "a:A"\nreplicas = 2\n'


def test_a_chosen_number_holds_until_mesh_toml_changes(tmp_path: Path):
    """The later decision counts, whoever made it."""
    roster = written(tmp_path, TWO)
    roster.choose("greeting", 5)
    assert written(tmp_path, TWO).count("greeting") == 5
    assert len(parsed(tmp_path)["greeting"].process_configs) == 5
    assert written(tmp_path, TWO.replace("replicas = 2", "replicas = 3")).count("greeting") == 3
    roster = written(tmp_path, TWO)
    roster.choose("greeting", 2)
    assert (tmp_path / "run/programs/replicas.json").read_text() == "{}\n"


def test_unreadable_numbers_are_told(tmp_path: Path):
    """A damaged file names itself and the remedy."""
    written(tmp_path, TWO)
    (tmp_path / "run/programs/replicas.json").write_text("{")
    with pytest.raises(SetupError, match=r"replicas\.json "):
        written(tmp_path, TWO)


def test_what_mesh_toml_no_longer_names_has_no_file(tmp_path: Path):
    """A fresh start runs what is written, and nothing else."""
    written(tmp_path, TWO)
    roster = written(tmp_path, "[gateway]\nreplicas = 1\n")
    assert [path.name for path in sorted(roster.directory.glob("*.conf"))] == ["gateway.conf"]


def test_each_step_of_a_change_can_be_read_by_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """kill -9 of `mesh scale` between any two writes leaves files from which supervisord starts."""
    roster = written(tmp_path, TWO)
    role = roster.roles["greeting"]
    seen = []

    def look(step):
        def stepped(*args, **options):
            step(*args, **options)
            seen.append([process.name for process in parsed(tmp_path)["greeting"].process_configs])

        return stepped

    monkeypatch.setattr(roster, "_write", look(roster._write))
    monkeypatch.setattr(Path, "unlink", look(Path.unlink))
    roster.keep("greeting", {number: role.text(number) for number in range(4)})
    roster.keep("greeting", {0: role.text(0)})
    assert seen[0] == seen[1] == ["greeting_0", "greeting_1"]
    assert ["greeting_0", "greeting_1", "greeting_2", "greeting_3"] in seen
    assert seen[-1] == ["greeting_0"]


def test_only_one_command_changes_what_runs(tmp_path: Path):
    """The second is told who is at it."""
    roster = written(tmp_path, TWO)
    with (
        roster.lock(),
        pytest.raises(LockTaken, match=r"mesh .*\(pid \d+\)"),
        written(tmp_path, TWO).lock(),
    ):
        pass
    with roster.lock():
        pass


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("greeting_0.conf", "greeting"),
        ("greeting.group.conf", "greeting"),
        ("x_1_10.conf", "x_1"),
        ("x_1.group.conf", "x_1"),
        ("gateway.conf", "gateway"),
    ],
)
def test_a_file_belongs_to_whom_its_name_says(file: str, name: str):
    """Also for services whose names end like a number."""
    assert owner(file) == name


def test_every_file_says_where_it_comes_from(tmp_path: Path):
    """Whoever opens one knows what to change instead."""
    roster = written(tmp_path, TWO)
    texts = [path.read_text() for path in roster.directory.glob("*.conf")]
    assert len(texts) == 3
    assert all(text.startswith(SIGN + "[services.greeting] of mesh.toml.") for text in texts)


def test_a_canary_differs_by_one_option(tmp_path: Path) -> None:
    """supervisor reads it, and the file is known for what it is."""
    roster = written(
        tmp_path, """
        [services.greeting]
        class = "services.greeting:Greeting"
        env_file = "a {b} %c.env"
        """
    )  # fmt: skip
    role = roster.roles["greeting"]
    assert role.is_canary(role.canary_text(1))
    assert not role.is_canary(role.text(1))
    roster.keep("greeting", {0: role.text(0), 1: role.canary_text(1)})
    regular, canary = (each.command for each in parsed(tmp_path)["greeting"].process_configs)
    assert canary == f"{regular} --canary"
    assert roster.present("greeting") == {0: role.text(0), 1: role.canary_text(1)}

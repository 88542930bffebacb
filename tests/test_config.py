"""mesh.toml, the environment and flags: what is read, which wins, and how a mistake is told."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config import Settings, find_file, load, origins, project_root, usable
from mesh.config.places import places
from mesh.config.values import read_duration, read_size, show_duration, show_size
from mesh.errors import ConfigError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a mesh.toml into an empty project, stand in it, and give the project's directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str = "") -> Path:
        (tmp_path / "mesh.toml").write_text(textwrap.dedent(text))
        return tmp_path

    return write


def wrong(env: dict[str, str] | None = None, **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(env=env or {}, flags=flags)
    return caught.value.message


# --- what is left ---------------------------------------------------------------------------------------


def test_what_is_right_can_be_used_when_something_is_wrong(project):
    """Each complaint is that of `load`; the rest holds, and has its places."""
    root = project('[mesh]\nrun_dir = "sockets"\n[gateway]\nport = "80a"\n[services.shop]\nclass = "shop:Shop"\nx = 1')
    found = usable(env={})
    assert "\n".join(found.complaints) == wrong()
    assert [line.partition(": ")[0] for line in found.complaints] == ["mesh.toml:4", "mesh.toml:7"]
    assert found.settings.mesh.run_dir == root / "sockets"
    assert found.settings.gateway.port == 8080
    assert found.settings.services["shop"].classes == ["shop:Shop"]
    assert (found.place("services.shop.class"), found.place("gateway.host")) == ("mesh.toml:6", "mesh.toml")
    assert found.read


def test_of_a_file_that_is_no_toml_the_project_is_left(project):
    """Nobody knows then what else it says."""
    root = project("[gateway\n")
    found = usable(env={})
    assert (found.read, found.settings.root) == (False, root)
    assert found.complaints == [wrong()]
    assert project_root({}) == root
    assert project_root({"MESH_CONFIG": str(root / "a/other.toml")}) == root / "a"


# --- reading ------------------------------------------------------------------------------------------


def test_without_a_file_every_key_has_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty directory is a project: its run directory and hub are in it."""
    monkeypatch.chdir(tmp_path)
    settings = load(env={})
    assert settings.root == tmp_path
    assert settings.file is None
    assert settings.mesh.run_dir == tmp_path / "run"
    assert settings.mesh.hubs == [f"ipc://{tmp_path}/run/hub.sock"]
    assert settings.calls.timeout_s == 10.0
    assert settings.gateway.port == 8080


def test_settings_can_be_made_without_any_file_at_all():
    """Tests and embedders build the tree in code."""
    settings = Settings()
    assert settings.calls.max_body_bytes == 64 * 2**20
    assert settings.mesh.hubs == [f"ipc://{settings.mesh.run_dir}/hub.sock"]
    assert settings.service("anything").concurrency == settings.calls.concurrency


def test_the_file_is_found_from_a_directory_below(project, monkeypatch: pytest.MonkeyPatch):
    """A command typed deep in the project still means the project."""
    root = project('[mesh]\nrun_dir = "here"\n')
    (root / "a/b").mkdir(parents=True)
    monkeypatch.chdir(root / "a/b")
    assert find_file() == root / "mesh.toml"
    assert load(env={}).mesh.run_dir == root / "here"


def test_mesh_config_names_another_file(project, tmp_path: Path):
    """$MESH_CONFIG wins over looking upwards."""
    project("[gateway]\nport = 1000\n")
    (tmp_path / "other.toml").write_text("[gateway]\nport = 2000\n")
    assert load(env={"MESH_CONFIG": str(tmp_path / "other.toml")}).gateway.port == 2000


def test_values_carry_their_unit(project):
    """Durations become seconds, sizes become bytes."""
    project("""
        [calls]
        timeout = "250ms"
        max_body = "1MiB"
        [gateway]
        drain = "1m30s"
    """)
    settings = load(env={})
    assert settings.calls.timeout_s == 0.25
    assert settings.calls.max_body_bytes == 2**20
    assert settings.gateway.drain_s == 90.0


def test_a_service_inherits_the_limits_of_calls(project):
    """[services.x] overrides [calls]; what it leaves out stays; `config` is the service's own."""
    project("""
        [calls]
        queue = 7
        concurrency = 9
        [services.greeting]
        concurrency = 2
        config = {punctuation = "!"}
    """)
    settings = load(env={"MESH_SERVICES_GREETING_CONFIG_LANGUAGE": "en"})
    greeting = settings.service("greeting")
    assert (greeting.concurrency, greeting.queue) == (2, 7)
    assert greeting.config == {"punctuation": "!", "language": "en"}
    assert (settings.service("other").concurrency, settings.service("other").queue) == (9, 7)


def test_relative_endpoints_and_paths_belong_to_the_project(project):
    """A hub's relative socket is the same one from every directory."""
    root = project('[mesh]\nhubs = ["ipc://run/hub.sock", "tcp://10.0.0.2:7000"]\nlog_dir = "var/log"\n')
    settings = load(env={})
    assert settings.mesh.hubs == [f"ipc://{root}/run/hub.sock", "tcp://10.0.0.2:7000"]
    assert settings.mesh.log_dir == root / "var/log"


# --- which wins ---------------------------------------------------------------------------------------


def test_flag_over_environment_over_file_over_default(project):
    """Each layer hides the one below, and the origin says which it was."""
    project("\n[gateway]\nport = 1001\n")

    def port(env: dict[str, str], flags: dict[str, object] | None = None) -> tuple[object, str]:
        found = {each.key: each for each in origins(env=env, flags=flags)}["gateway.port"]
        assert load(env=env, flags=flags).gateway.port == found.value
        return found.value, found.origin

    assert port({}) == (1001, "mesh.toml:3")
    assert port({"MESH_GATEWAY_PORT": "1002"}) == (1002, "MESH_GATEWAY_PORT")
    assert port({"MESH_GATEWAY_PORT": "1002"}, {"gateway.port": 1003}) == (1003, "--port")
    assert port({}, {"gateway.port": None}) == (1001, "mesh.toml:3")


def test_flags_take_attribute_names_and_plain_seconds():
    """Code may say calls.timeout_s = 2, because there the attribute names the unit."""
    settings = load(env={}, flags={"calls.timeout_s": 2, "gateway.max_body": 10, "log.level": "debug"})
    assert settings.calls.timeout_s == 2.0
    assert settings.gateway.max_body_bytes == 10
    assert settings.log.level == "debug"


def test_lists_in_the_environment_are_separated_by_commas():
    """MESH_MESH_HUBS holds several hubs."""
    settings = load(env={"MESH_MESH_HUBS": "tcp://a:1, tcp://b:2"})
    assert settings.mesh.hubs == ["tcp://a:1", "tcp://b:2"]


def test_the_environment_fills_in_values_of_the_file(project):
    """${NAME}, ${NAME:default}, and $${NAME} for the text itself."""
    project("""
        [gateway]
        port = "${PORT:8081}"
        [mesh]
        name = "shop-${STAGE}"
        [services.greeting.config]
        template = "$${NAME}"
    """)
    settings = load(env={"STAGE": "test"})
    assert settings.gateway.port == 8081
    assert settings.mesh.name == "shop-test"
    assert settings.service("greeting").config == {"template": "${NAME}"}
    assert load(env={"STAGE": "x", "PORT": "9000"}).gateway.port == 9000


def test_origins_show_values_as_they_would_be_written(project):
    """`mesh config` output can be pasted into a mesh.toml."""
    project()
    shown = {each.key: each.value for each in origins(env={})}
    assert shown["calls.timeout"] == "10s"
    assert shown["links.heartbeat"] == "1s"
    assert shown["calls.max_body"] == "64MiB"


# --- mistakes -----------------------------------------------------------------------------------------


def test_a_bad_value_names_file_line_key_value_and_what_is_allowed(project):
    """The example of the style guide, word for word."""
    project('# first\n\n[gateway]\nport = "80a"\n')
    assert wrong().startswith('mesh.toml:4: gateway.port: "80a" ')
    assert "1–65535" in wrong()


def test_an_unknown_key_offers_the_nearest_right_one(project):
    """A typing mistake is corrected by reading the message."""
    project("[gateway]\nprot = 80\n")
    assert re.match(r'mesh\.toml:2: gateway\.prot: .*"port"', wrong())
    project("[gatway]\nport = 80\n")
    assert re.match(r'mesh\.toml:1: gatway: .*"gateway"', wrong())
    project("[log]\nzzz = 1\n")
    assert re.match(r"mesh\.toml:2: log\.zzz: .*level, format, slow$", wrong())


def test_a_unit_in_the_key_is_answered_with_the_key_without_it(project):
    """`timeout_s` is the attribute's name, `timeout` the key's."""
    project("[calls]\ntimeout_s = 3\n")
    assert re.match(r'mesh\.toml:2: calls\.timeout_s: .*"timeout"', wrong())


def test_a_number_without_a_unit_is_refused_with_the_unit_to_write(project):
    """Nobody has to guess whether 10 meant seconds."""
    project("[calls]\ntimeout = 10\n")
    assert re.match(r'mesh\.toml:2: calls\.timeout: 10 .*"10s"$', wrong())
    assert '"16B"' in wrong({"MESH_GATEWAY_MAX_BODY": "16"})


def test_every_mistake_is_told_at_once(project):
    """Three errors cost one start, not three."""
    project('[gateway]\nport = 0\n[log]\nlevel = "loud"\n')
    lines = wrong({"MESH_CALLS_QUEUE": "-1"}).splitlines()
    assert [line.partition(" is not ")[0] for line in lines] == [
        "mesh.toml:2: gateway.port: 0",
        'mesh.toml:4: log.level: "loud"',
        'MESH_CALLS_QUEUE: calls.queue: "-1"',
    ]


def test_an_unknown_variable_of_a_table_is_a_mistake_and_others_are_not():
    """MESH_GATEWAY_PROT was meant for us; MESH_DEBUG and MESH_NETWORK_ID may be somebody else's."""
    assert re.match(r'MESH_GATEWAY_PROT: .*"MESH_GATEWAY_PORT"', wrong({"MESH_GATEWAY_PROT": "1"}))
    assert "MESH_SERVICES_NAME_CONCURRENCY" in wrong({"MESH_SERVICES_GREETING_COLOUR": "1"})
    load(env={"MESH_DEBUG": "1", "MESH_NETWORK_ID": "x"})


def test_broken_toml_names_its_line(project):
    """The parser's own words, in the form of every other mistake."""
    project("[gateway]\nport 80\n")
    assert wrong().startswith("mesh.toml:2: ")


def test_a_named_file_that_is_missing_or_not_text_is_named(project, tmp_path: Path):
    """A wrong path is not silently a project of defaults."""
    project()
    assert wrong({"MESH_CONFIG": str(tmp_path / "nowhere.toml")}).startswith("nowhere.toml: ")
    (tmp_path / "mesh.toml").write_bytes(b"\xff\xfe")
    assert wrong().startswith("mesh.toml: ")


def test_an_unset_variable_without_a_default_is_named(project):
    """${NAME} never becomes an empty text by accident."""
    project('[mesh]\nname = "${STAGE}"\n')
    assert re.match(r"mesh\.toml:2: mesh\.name: .*\bSTAGE\b", wrong())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gateway = 3\n", "mesh.toml:1: gateway: "),
        ("services = 3\n", "mesh.toml:1: services: "),
        ("[services]\ngreeting = 1\n", "mesh.toml:1: services: "),
        ("[services.greeting]\nconfig = 1\n", "mesh.toml:2: services.greeting.config: "),
        ("[services.greeting]\nqueu = 1\n", "mesh.toml:2: services.greeting.queu: "),
        ("[calls]\nqueue = true\n", "mesh.toml:2: calls.queue: true "),
        ("[calls]\nretry_ratio = nan\n", "mesh.toml:2: calls.retry_ratio"),
        ('[mesh]\nhubs = "nowhere"\n', 'mesh.toml:2: mesh.hubs: "nowhere" '),
        ('[mesh]\nbind = "udp://x"\n', 'mesh.toml:2: mesh.bind: "udp://x" '),
        ('[discovery]\nrenew = "9s"\n', "mesh.toml:2: discovery.renew: 9s "),
    ],
)
def test_each_kind_of_mistake_has_its_line(project, text: str, says: str):
    """Wrong shapes are told like wrong values, never as a traceback."""
    project(text)
    assert wrong().startswith(says)


# --- the parts ----------------------------------------------------------------------------------------

DOCUMENT = """\
# a comment with [brackets] and key = value
top = 1
[gateway]  # trailing
port = 80
"host" = "a # not a comment"
[calls]
retry.first = [1, 2,
  3]
after = 1
text = \"\"\"
port = 5
[gateway.not]
\"\"\"
lit = '''
x = "y" '''
last = 2
[services]
greeting = {concurrency = 3, config = {a = "}", b = [1, {c = 2}]}}
[services."odd name".config]
z = 1979-05-27 07:32:00
[[many]]
k = 1
"""


def test_places_finds_tables_dotted_keys_and_inline_tables():
    """Each key has the line on which a reader would look for it; strings and comments hold no keys."""
    found = places(DOCUMENT)
    assert found[("top",)] == 2
    assert found[("gateway",)] == 3
    assert found[("gateway", "port")] == 4
    assert found[("gateway", "host")] == 5
    assert found[("calls", "retry", "first")] == 7
    assert found[("calls", "after")] == 9
    assert found[("calls", "text")] == 10
    assert found[("calls", "lit")] == 14
    assert found[("calls", "last")] == 16
    assert found[("services", "greeting", "config", "b", "c")] == 18
    assert found[("services", "odd name", "config", "z")] == 20
    assert found[("many", "k")] == 22
    assert ("gateway", "not") not in found


def test_a_value_in_an_inline_table_is_told_with_its_line(project):
    """The finder and the loader agree on what a key is called."""
    project("\ngateway = {port = 0}\n")
    assert wrong().startswith("mesh.toml:2: gateway.port: 0 ")
    project("\n\ngateway.port = 0\n")
    assert wrong().startswith("mesh.toml:3: gateway.port: 0 ")


@given(st.sampled_from([1, 5, 250, 999, 1000, 1500, 60_000, 90_000, 3_600_000, 86_400_000]))
def test_a_shown_duration_reads_back_the_same(milliseconds: int):
    """What `mesh config` prints may be written back."""
    assert read_duration(show_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@given(st.integers(1, 2**40))
def test_a_shown_size_reads_back_the_same(count: int):
    """Whatever the number, the unit chosen for it is exact."""
    assert read_size(show_size(count)) == count


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 2000, "x = " + "9" * 5000], ids=["nested too deeply", "number too long"]
)
def test_what_python_cannot_read_is_an_error_of_the_file(project, text: str):
    project(text)
    assert wrong().startswith("mesh.toml: ")


@pytest.mark.parametrize("value", ["9" * 400 + "d", "9" * 400 + "GiB"])
def test_a_time_or_size_beyond_all_numbers_is_refused(value: str):
    with pytest.raises(ValueError, match=r"^it "):
        (read_size if value.endswith("B") else read_duration)(value)

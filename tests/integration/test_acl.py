"""The generated ACL on a real mosquitto with real TLS, tried with the clients everybody has."""

import subprocess

import pytest
from running import PATIENCE_S, wait_for
from secured import Mosquitto, generated
from typer.testing import CliRunner

from edge_agent.cli.app import app
from edge_agent.fleet.monitor import Monitor
from edge_agent.fleet.rows import rows
from edge_agent.mqtt.access import Access
from edge_agent.protocol.acl import Fleet, rights
from edge_agent.protocol.payloads import Presence
from edge_agent.protocol.topics import Topics


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    mosquitto = Mosquitto(tmp_path_factory.mktemp("passwords"), "passwords")
    with mosquitto.broker:
        yield mosquitto


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    mosquitto = Mosquitto(tmp_path_factory.mktemp("certificates"), "certificates")
    with mosquitto.broker:
        yield mosquitto


ALLOWED = [
    ("line-3", "edge/v1/agents/edge-01/cmd/job/line-3"),
    ("line-3", "edge/v1/agents/edge-01/cmd/cancel/line-3"),
    ("line-3", "edge/v1/agents/edge-01/cmd/status/line-3"),
    ("line-3", "edge/v1/agents/edge-01/cmd/image/line-3"),
    ("line-3", "edge/v1/pools/line/job/line-3"),
    ("line-3", "edge/v1/pools/line/cancel/line-3"),
    ("edge-01", "edge/v1/agents/edge-01/evt/presence"),
    ("edge-01", "edge/v1/agents/edge-01/evt/jobs/j/status"),
    ("edge-01", "edge/v1/clients/line-3/inbox/edge-01/j/result"),
    ("edge-01", "plant/answers/edge-01"),
    ("op", "edge/v1/agents/edge-01/admin/model/op"),
]
REFUSED = [
    ("line-3", "edge/v1/agents/edge-01/cmd/job/line-4"),  # a job in another's name
    ("line-3", "edge/v1/agents/edge-01/cmd/cancel/line-4"),  # another's job canceled
    ("line-3", "edge/v1/agents/edge-01/cmd/status/line-4"),
    ("line-3", "edge/v1/pools/line/job/line-4"),
    ("line-3", "edge/v1/pools/line/cancel/line-4"),
    ("line-3", "edge/v1/agents/edge-01/admin/model/line-3"),  # an admin's topic
    ("line-3", "edge/v1/agents/edge-01/evt/presence"),  # an agent's voice
    ("line-3", "edge/v1/clients/line-4/inbox/edge-01/j/result"),
    ("line-3", "edge/v1/clients/line-3/inbox/edge-01/j/result"),
    ("line-3", "plant/answers/edge-01"),
    ("edge-02", "edge/v1/agents/edge-01/evt/presence"),  # another agent's voice
    ("edge-02", "edge/v1/agents/edge-01/evt/jobs/j/status"),
    ("edge-02", "edge/v1/clients/line-3/inbox/edge-01/j/result"),  # also not into an inbox
    ("edge-02", "edge/v1/agents/edge-01/cmd/job/edge-02"),
    ("edge-02", "edge/v1/agents/edge-01/admin/model/edge-02"),
    ("edge-02", "plant/answers/edge-01"),
    ("grafana", "edge/v1/agents/edge-01/cmd/job/grafana"),
    ("grafana", "edge/v1/agents/edge-01/evt/presence"),
    ("op", "edge/v1/agents/edge-01/admin/model/line-3"),  # an admin in another's name
    ("op", "edge/v1/agents/edge-01/cmd/job/op"),
]


@pytest.mark.broker
@pytest.mark.parametrize("setup", ["guarded", "certified"])
def test_everybody_says_what_they_must_and_nothing_else(setup, request):
    mosquitto = request.getfixturevalue(setup)
    assert [pair for pair in ALLOWED if not mosquitto.may_write(*pair)] == []
    assert [pair for pair in REFUSED if mosquitto.may_write(*pair)] == []


def speaker(topic):
    """Return who may publish on a topic."""
    return next(user for user, allowed in ALLOWED if allowed == topic)


@pytest.mark.broker
@pytest.mark.parametrize(
    ("user", "filters", "kept_from", "own"),
    [
        ("line-4", "edge/v1/clients/#", "edge/v1/clients/line-3/inbox/edge-01/j/result", None),
        ("line-3", "edge/v1/agents/#", "edge/v1/agents/edge-01/cmd/job/line-3", "edge/v1/agents/edge-01/evt/presence"),
        ("edge-02", "#", "edge/v1/agents/edge-01/cmd/job/line-3", None),
        ("edge-02", "#", "edge/v1/pools/line/job/line-3", None),
        ("edge-02", "#", "edge/v1/clients/line-3/inbox/edge-01/j/result", None),
        ("edge-02", "#", "edge/v1/agents/edge-01/admin/model/op", None),
        ("grafana", "#", "edge/v1/clients/line-3/inbox/edge-01/j/result", "edge/v1/agents/edge-01/evt/presence"),
        ("grafana", "#", "edge/v1/agents/edge-01/cmd/job/line-3", "edge/v1/agents/edge-01/evt/presence"),
    ],
)
def test_nobody_hears_what_is_said_to_others(guarded, user, filters, kept_from, own):
    """Whatever is subscribed to: the first thing that comes is the one that is theirs, though said last."""
    session = guarded.listens(user, filters)
    assert guarded.may_write(speaker(kept_from), kept_from, "another's")
    if own is None and user == "line-4":
        own, said_by = f"edge/v1/clients/{user}/inbox/edge-01/j/status", "edge-01"
    elif own is None:
        own, said_by = f"edge/v1/agents/{user}/cmd/status/line-3", "line-3"
    else:
        said_by = speaker(own)
    assert guarded.may_write(said_by, own, "own")
    assert guarded.first(user, session) == "own"


@pytest.mark.broker
@pytest.mark.parametrize(
    ("user", "topic", "said_by"),
    [
        ("edge-01", "edge/v1/agents/edge-01/cmd/job/line-3", "line-3"),
        ("edge-01", "edge/v1/agents/edge-01/admin/model/op", "op"),
        ("edge-01", "edge/v1/pools/line/cancel/line-3", "line-3"),
        ("edge-01", "edge/v1/agents/edge-01/evt/presence", "edge-01"),
        ("line-3", "edge/v1/clients/line-3/inbox/edge-01/j/result", "edge-01"),
        ("grafana", "edge/v1/agents/edge-01/evt/jobs/j/status", "edge-01"),
    ],
)
def test_everybody_hears_what_is_said_to_them(guarded, user, topic, said_by):
    session = guarded.listens(user, topic)
    assert guarded.may_write(said_by, topic, "heard")
    assert guarded.first(user, session) == "heard"


@pytest.mark.broker
@pytest.mark.parametrize(("user", "seen"), [("grafana", ["edge-01"]), ("op", ["edge-01"]), ("edge-02", [])])
def test_a_monitor_sees_the_fleet(guarded, user, seen):
    """And an admin; another agent does not."""
    presence = Presence(agent="edge-01", state="online", boot_id="b", conn_seq=1, health="ready")
    topic = Topics("edge/v1", "edge-01").event("presence")
    assert guarded.may_write("edge-01", topic, presence.encode().decode(), retain=True)
    access = Access(
        "127.0.0.1",
        guarded.port,
        client_id=f"{user}-fleet",
        clean_start=True,
        username=user,
        password_file=guarded.folder / f"{user}.password",
        tls=True,
        tls_ca_file=guarded.folder / "ca.pem",
    )
    with Monitor(access, root="edge/v1") as monitor:
        wait_for(lambda: not monitor.attend() and monitor.settled(), "what the broker keeps")
        assert [row.agent for row in rows(monitor.roster, 0.0)] == seen


@pytest.mark.parametrize("proof", ["passwords", "certificates"])
def test_who_is_added_later_changes_nothing_for_the_others(tmp_path, proof):
    """Authority, certificates and passwords that are there stay; who is not named any more is let in no more."""

    def run(*names):
        users = [word for name in names for word in ("--requester", name)]
        script = generated(tmp_path, *users, "--proof", proof, "--broker", "127.0.0.1")
        subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=PATIENCE_S)
        kept = [path for path in tmp_path.iterdir() if path.suffix in {".pem", ".key", ".password"}]
        return {path.name: path.read_bytes() for path in kept}

    before = run("line-3", "line-4")
    after = run("line-3", "line-5")
    assert after.items() > before.items()
    assert "user line-4" not in (tmp_path / "edge.acl").read_text()
    if proof == "passwords":
        names = [line.partition(":")[0] for line in (tmp_path / "passwords").read_text().splitlines()]
        assert names == ["line-3", "line-5"]


def test_a_name_of_several_roles_has_the_rights_of_each():
    fleet = Fleet("edge/v1", requesters=("op",), admins=("op",))
    assert fleet.users() == ("op",)
    granted = {(right.access, right.filter) for right in rights(fleet, "op")}
    assert ("write", "edge/v1/agents/+/cmd/job/op") in granted
    assert ("write", "edge/v1/agents/+/admin/+/op") in granted
    assert rights(fleet, "stranger") == ()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--agent", "Edge"),
        ("--agent", "edge-01:line,+"),
        ("--requester", "a\ntopic readwrite #"),
        ("--requester", "%u"),
        ("--agent", "edge-01", "--watch-read", "edge-01=#"),
        ("--agent", "edge-01", "--watch-read", "edge-01=+/v1/clients/#"),
        ("--agent", "edge-01", "--watch-write", "edge-01=edge/v1/clients/line-3/inbox/edge-02/j/result"),
        ("--agent", "edge-01", "--watch-read", "edge-01=a\nuser line-3"),
        ("--agent", "edge-01", "--watch-read", "edge-01=a/#/b"),
        ("--agent", "edge-01", "--watch-read", "edge-02=plant/#"),
        ("--agent", "edge-01", "--root", "a b"),
        ("--agent", "edge-01", "--broker", "x; rm -rf /"),
        ("--agent", "ca"),
        ("--requester", "line-3", "--requester", "ca", "--proof", "certificates"),
        ("--monitor", "broker"),
        ("--admin", "broker", "--proof", "certificates"),
        (),
    ],
)
def test_what_would_give_more_than_it_says_is_refused(tmp_path, arguments):
    run = CliRunner().invoke(app, ["acl", str(tmp_path / "edge.acl"), *arguments])
    assert run.exit_code == 2
    assert not (tmp_path / "edge.acl").exists()


def made_by(folder, proof):
    """Return the files that the printed script makes."""
    script = generated(folder, "--requester", "line-3", "--proof", proof, "--broker", "127.0.0.1")
    subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=PATIENCE_S)
    return {path.name for path in folder.iterdir()} - {"edge.acl"}


@pytest.mark.parametrize("proof", ["passwords", "certificates"])
def test_the_acl_is_written_over_no_file_that_the_script_makes(tmp_path, proof):
    """Such as the authority's key, or somebody's password."""
    made = made_by(tmp_path, proof)
    assert "ca.key" in made
    for name in made:
        before = (tmp_path / name).read_bytes()
        run = CliRunner().invoke(app, ["acl", str(tmp_path / name), "--requester", "line-3", "--proof", proof])
        assert run.exit_code == 2, name
        assert (tmp_path / name).read_bytes() == before

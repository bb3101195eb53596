"""A mosquitto set up by what `edge-agent acl` writes and prints, and mosquitto's own clients."""

import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest
from running import PATIENCE_S
from typer.testing import CliRunner

from edge_agent.cli.app import app
from edge_agent.mqtt.private_broker import PrivateBroker, random_port

USERS = (
    *("--agent", "edge-01:line,press", "--agent", "edge-02", "--requester", "line-3", "--requester", "line-4"),
    *("--monitor", "grafana", "--admin", "op"),
    *("--watch-read", "edge-01=plant/+/alarm", "--watch-write", "edge-01=plant/answers/edge-01"),
)


DYNAMIC_SECURITY = sorted(Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"))


def refusing(folder, topics):
    """Return the lines of a broker that refuses a subscription; mosquitto's ACL file cannot, this plugin can."""
    if not DYNAMIC_SECURITY:
        reason = "mosquitto's dynamic security plugin is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    deny = {"acltype": "subscribePattern", "topic": topics, "allow": False, "priority": 1}
    config = folder / "dynamic-security.json"
    config.write_text(
        json.dumps(
            {
                "defaultACLAccess": dict.fromkeys(
                    ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe"), True
                ),
                "clients": [],
                "groups": [{"groupname": "all", "roles": [{"rolename": "deaf"}]}],
                "roles": [{"rolename": "deaf", "acls": [deny]}],
                "anonymousGroup": "all",
            }
        )
    )
    return f"plugin {DYNAMIC_SECURITY[0]}\nplugin_opt_config_file {config}\n"


def generated(folder, *arguments):
    """Run `edge-agent acl`; return the script it prints."""
    folder.mkdir(parents=True, exist_ok=True)
    run = CliRunner().invoke(app, ["acl", str(folder / "edge.acl"), *arguments])
    assert run.exit_code == 0, run.output
    return run.stdout


class Mosquitto:
    """A broker set up by the printed script, and mosquitto's own clients.

    `example` are lines in place of the printed ones, for files in /etc/mosquitto/edge.
    """

    def __init__(self, folder, proof, *, example=None):
        self.folder, self.proof, self.port = folder, proof, random_port()
        script = generated(folder, *USERS, "--proof", proof, "--broker", "127.0.0.1", "--port", str(self.port))
        subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=PATIENCE_S)
        lines = (folder / "mosquitto-edge.conf").read_text()
        if example is not None:
            lines = example.replace("/etc/mosquitto/edge/", f"{folder}/").replace(
                "listener 8883", f"listener {self.port}"
            )
        lines = lines.replace(f"{self.port}\n", f"{self.port} 127.0.0.1\n", 1)
        self.broker = PrivateBroker(folder=folder / "broker", settings=lines)
        config = self.broker._write_config

        def only_what_was_printed(port):
            """The private broker's own listener and leave for everybody give way to the printed lines."""
            file = config(port)
            own = f"listener {port} 127.0.0.1\nallow_anonymous true\n"
            file.write_text(file.read_text().replace(own, "", 1))
            return file

        self.broker._write_config = only_what_was_printed
        self.broker._port = self.port

    def options(self, user):
        common = ("-V", "mqttv5", "-h", "127.0.0.1", "-p", str(self.port), "--cafile", str(self.folder / "ca.pem"))
        if self.proof == "certificates":
            return *common, "--cert", str(self.folder / f"{user}.pem"), "--key", str(self.folder / f"{user}.key")
        return *common, "-u", user, "-P", (self.folder / f"{user}.password").read_text().strip()

    def may_write(self, user, topic, payload="x", *, retain=False):
        """Publish and return whether the broker took it."""
        command = [
            "mosquitto_pub",
            *self.options(user),
            "-q",
            "1",
            "-t",
            topic,
            "-m",
            payload,
            *(["-r"] if retain else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0 or "Not authorized" in done.stderr, done.stderr
        return "Not authorized" not in done.stderr

    def listens(self, user, *filters):
        """Subscribe for a session that stays; return its name."""
        session = uuid.uuid4().hex
        topics = [word for each in filters for word in ("-t", each)]
        command = ["mosquitto_sub", *self.options(user), "-i", session, "-c", "-x", "600", "-q", "1", "-E", *topics]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
        return session

    def first(self, user, session):
        """Return the first thing that came to a session."""
        command = [
            "mosquitto_sub",
            *self.options(user),
            "-i",
            session,
            "-c",
            "-x",
            "600",
            "-q",
            "1",
            "-C",
            "1",
            "-t",
            "none",
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout.strip()

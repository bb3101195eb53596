"""The example settings for mosquitto, on a real one, with the files that `edge-agent acl` makes."""

import subprocess
from pathlib import Path

import pytest
from running import PATIENCE_S
from secured import Mosquitto

from edge_agent.client.client import EdgeClient
from edge_agent.mqtt.access import Access

pytestmark = pytest.mark.broker

EXAMPLES = Path(__file__).parents[2] / "systemd/mosquitto"
JOB = "edge/v1/agents/edge-01/cmd/job"


@pytest.mark.parametrize("proof", ["passwords", "certificates"])
def test_named_users_alone_get_in_and_only_as_themselves(tmp_path, proof):
    mosquitto = Mosquitto(tmp_path / "edge", proof, example=(EXAMPLES / f"{proof}.conf").read_text())
    with mosquitto.broker:
        assert mosquitto.may_write("line-3", f"{JOB}/line-3")
        assert not mosquitto.may_write("line-3", f"{JOB}/line-4")
        ca = str(mosquitto.folder / "ca.pem")
        where = ("-V", "mqttv5", "-h", "127.0.0.1", "-p", str(mosquitto.port))
        for stranger in (("--cafile", ca), ()):  # without a name, and without TLS
            command = ["mosquitto_pub", *where, *stranger, "-q", "1", "-t", f"{JOB}/line-3", "-m", "x"]
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
            assert done.returncode != 0
        files = {"tls_ca_file": Path(ca)}
        if proof == "passwords":
            files |= {"username": "line-3", "password_file": mosquitto.folder / "line-3.password"}
        else:
            files |= {"tls_cert_file": mosquitto.folder / "line-3.pem", "tls_key_file": mosquitto.folder / "line-3.key"}
        with EdgeClient(Access("127.0.0.1", mosquitto.port, client_id="line-3", tls=True, **files)):
            pass

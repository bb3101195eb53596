"""`edge-agent models` as a user runs it, against a hub that runs here."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest
from hub import COMMIT, Hub
from running import PATIENCE_S, wait_for

FILES = {"cpu/genai_config.json": b"{}", "cpu/model.onnx.data": random.Random(5).randbytes(500_000)}
CATALOGUE = f"""
[[family]]
name = "tiny"
parameters = 1
layers = 1
heads = 1
kv_heads = 1
head_size = 1
context_tokens = 64
source = "made up"

[[variant]]
name = "tiny-cpu"
family = "tiny"
backend = "onnx"
devices = ["cpu"]
repo = "maker/model"
revision = "{COMMIT}"
folder = "cpu"
precision = "int4"
weight_bytes = 500_000
source = "made up"
"""


@pytest.fixture
def hub():
    with Hub(FILES, large={"cpu/model.onnx.data"}) as running:
        yield running


@pytest.fixture
def config(tmp_path, hub):
    (tmp_path / "catalogue.toml").write_text(CATALOGUE)
    file = tmp_path / "edge-agent.toml"
    file.write_text(
        f'[agent]\nstate_dir = "{tmp_path}/state"\n'
        f'[models]\nhub_url = "{hub.url}"\ncatalogue = ["{tmp_path}/catalogue.toml"]\n'
    )
    return file


@pytest.fixture
def command(config):
    """A verb's command line and environment; 200 columns, so that no sentence is broken."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_AGENT_")}
    environ |= {"EDGE_AGENT_CONFIG": str(config), "COLUMNS": "200"}
    return lambda *arguments: {
        "args": [sys.executable, "-m", "edge_agent", "models", *map(str, arguments)],
        "env": environ,
        "text": True,
    }


@pytest.fixture
def models(command):
    """Runs a verb; returns its status, stdout and stderr."""

    def run(*arguments):
        done = subprocess.run(**command(*arguments), capture_output=True, check=False, timeout=PATIENCE_S)
        return done.returncode, done.stdout, done.stderr

    return run


def builds(models):
    status, stdout, _stderr = models("list", "--json")
    assert status == 0
    return {each["name"]: each for each in json.loads(stdout)["builds"]}


def test_a_build_is_pulled_listed_verified_and_removed(models, tmp_path):
    assert builds(models)["tiny-cpu"]["state"] == "available"
    folder = tmp_path / "state" / "models" / "tiny-cpu"
    assert models("pull", "tiny-cpu") == (0, f"tiny-cpu is in {folder}\n", "")
    listed = builds(models)["tiny-cpu"]
    assert (listed["state"], listed["vouched"], listed["hashes_known"]) == ("installed", "hub", 2)
    assert "installed hub" in models("list")[1]
    assert models("path", "tiny-cpu")[1] == f"{folder}\n"
    assert "tiny-cpu is whole: 2 files" in models("verify")[1]
    (folder / "genai_config.json").write_bytes(b"[]")
    status, stdout, stderr = models("verify")
    assert (status, stdout) == (1, "")
    assert "genai_config.json differs" in stderr
    assert models("remove", "tiny-cpu")[0] == 0
    assert builds(models)["tiny-cpu"]["state"] == "available"


def test_a_build_travels_in_a_file(models, tmp_path, hub):
    models("pull", "tiny-cpu")
    status, stdout, _stderr = models("export", "tiny-cpu", tmp_path / "tiny.tar")
    assert status == 0
    assert "edge-agent models import tiny.tar" in stdout
    hub.requests.clear()
    status, stdout, _stderr = models("import", tmp_path / "tiny.tar", "--dir", tmp_path / "there")
    assert status == 0
    assert "hashes as the archive brought them" in stdout
    assert models("verify", "--dir", tmp_path / "there")[0] == 0
    assert hub.requests == []


def test_a_copied_folder_is_taken_in_under_a_name(models, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "genai_config.json").write_bytes(b"{}")
    assert "nobody vouches for" in models("import", tmp_path / "copy", "--name", "mine")[1]
    listed = builds(models)["mine"]
    assert (listed["state"], listed["family"], listed["vouched"]) == ("installed", None, "nobody")
    assert "not in the catalogue" in models("list")[1]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["pull", "nothing"], 2, "not in the catalogue"),
        (["pull", "tiny"], 2, "has several builds; name one"),
        (["pull"], 2, "Missing argument"),
        (["import", "/nowhere"], 2, "does not exist"),
        (["path", "tiny-cpu"], 1, "edge-agent models pull tiny-cpu"),
        (["verify", "tiny-cpu"], 1, "edge-agent models pull tiny-cpu"),
        (["remove", "tiny-cpu"], 1, "edge-agent models list"),
        (["export", "tiny-cpu", "x.tar"], 1, "edge-agent models pull tiny-cpu"),
        (["import", "/dev/null"], 1, "/dev/null"),
        (["list", "--config", "/dev/null", "--dir", "/dev/null"], 1, "/dev/null"),
    ],
)
def test_what_cannot_be_done_is_said_on_stderr(models, arguments, status, said):
    code, stdout, stderr = models(*arguments)
    assert (code, stdout) == (status, "")
    assert said in stderr
    assert "Traceback" not in stderr


def test_a_pull_that_fails_says_what_to_do(models, hub):
    hub.token = "hf_secret"
    status, stdout, stderr = models("pull", "tiny-cpu")
    assert (status, stdout) == (1, "")
    assert "models.token_file" in stderr


def test_ctrl_c_leaves_a_pull_to_be_continued_and_says_so(models, command, hub):
    hub.bytes_per_s = 100_000
    with subprocess.Popen(**command("pull", "tiny-cpu"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pulling:
        wait_for(lambda: hub.served_bytes > 50_000, "the first bytes")
        pulling.send_signal(signal.SIGINT)
        stdout, stderr = pulling.communicate(timeout=PATIENCE_S)
    assert (pulling.returncode, stdout) == (1, "")
    assert "go on with: edge-agent models pull tiny-cpu" in stderr
    assert "Traceback" not in stderr
    assert builds(models)["tiny-cpu"]["state"] == "partial"
    hub.bytes_per_s = None
    assert models("pull", "tiny-cpu")[0] == 0
    assert hub.downloads("model.onnx.data")[-1][1]["Range"] != "bytes=0-"

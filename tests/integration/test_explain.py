"""`edge-agent explain`, as a person and a program read it."""

import json
import os
import subprocess
import sys

import pytest

from edge_agent.cli.explain import memory_bytes


def explain(*arguments, columns=80, state_dir=None, returncode=0):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_AGENT_")}
    environ |= {"COLUMNS": str(columns), "NO_COLOR": "1"}
    if state_dir is not None:
        environ["EDGE_AGENT_AGENT__STATE_DIR"] = str(state_dir)
    command = [sys.executable, "-m", "edge_agent", "explain", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)
    assert ended.returncode == returncode, ended.stderr
    return ended.stdout or ended.stderr


@pytest.mark.engine
@pytest.mark.parametrize("columns", [80, 200])
def test_a_person_sees_what_would_run_and_why_nothing_else_does(tmp_path, columns):
    """Whole names, no line longer than the terminal, at the usual and at a wide one."""
    shown = explain(columns=columns, state_dir=tmp_path)
    assert max(map(len, shown.splitlines())) <= columns
    for part in ("phi-3.5-mini-onnx-cpu-int4", "turned down", "this machine has no Intel NPU"):
        assert part in shown


@pytest.mark.engine
def test_a_program_gets_what_is_published(tmp_path):
    """With the plan's memory in place of the machine's."""
    decision = json.loads(explain("--json", "--memory", "64G", "--context", "8192", state_dir=tmp_path))["models"][0]
    best = decision["candidates"][0]
    assert (decision["context_tokens"], best["context_tokens"]) == (8192, 8192)
    assert best["free_bytes"] == 64 * 2**30 - 768 * 2**20


@pytest.mark.engine
def test_a_machine_that_is_too_small_is_said_with_the_exit_status(tmp_path):
    """A script that plans purchases need not read the table."""
    assert "nothing fits" in explain("--memory", "2G", state_dir=tmp_path, returncode=1)


def test_another_machine_is_judged_by_its_files_as_if_every_library_were_there(tmp_path):
    """A folder with nothing in it is a machine of which nothing is known."""
    shown = json.loads(explain("--json", "--machine", str(tmp_path), "phi-3.5-vision"))["models"][0]
    assert shown["wanted"] == "phi-3.5-vision"
    assert all("free_bytes" not in each for each in shown["candidates"])


def test_a_model_that_nobody_has_is_said_with_the_nearest(tmp_path):
    """On standard error."""
    assert "did you mean phi-3.5-vision?" in explain("phi-3.5-visoin", "--machine", str(tmp_path), returncode=1)


@pytest.mark.parametrize(("amount", "size_bytes"), [("8G", 8 * 2**30), ("6.5GiB", 6.5 * 2**30), ("512m", 2**29)])
def test_amounts_are_written_as_people_do(amount, size_bytes):
    """Binary units, as memory is sold."""
    assert memory_bytes(amount) == size_bytes


def test_folders_are_told_with_what_bounds_them(tmp_path):
    """What is served of a folder of the user's own, why not more, and why one is no build."""
    config = {
        "max_position_embeddings": 131_072,
        "rope_parameters": {"original_max_position_embeddings": 4096, "long_factor": [1.1], "short_factor": [1.0]},
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "hidden_size": 256,
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    for file in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / "mine" / file).touch()
    settings = tmp_path / "edge-agent.toml"
    tables = "".join(
        f'[[models.serve]]\nname = "{name}"\npath = "{tmp_path / name}"\ncontext_tokens = 8192\n'
        for name in ("mine", "none")
    )
    settings.write_text(f'[agent]\nstate_dir = "{tmp_path / "state"}"\n{tables}')
    mine, none = json.loads(explain("--json", "--config", str(settings)))["models"]
    (candidate,) = mine["candidates"]
    assert (candidate["backend"], candidate["context_tokens"], candidate["installed"]) == ("openvino", 4096, True)
    assert candidate["needed_bytes"] > 0
    (note,) = candidate["notes"]
    assert note.startswith("this build takes 4096 tokens of context: beyond 4096 tokens longrope")
    (turned_down,) = none["rejected"]
    assert "is not a folder" in turned_down["reason"]
    shown = explain("--config", str(settings), returncode=1)
    assert "mine: 8192 tokens of context" in shown
    assert "none: nothing fits" in shown

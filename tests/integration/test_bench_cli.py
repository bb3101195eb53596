"""`edge-agent bench` as a person and a program run it, on tiny models."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree as ET

import psutil
import pytest
from rich.console import Console
from running import PATIENCE_S, wait_for

from edge_agent.bench.calibrate import Calibration, SettingVerdict, Tried
from edge_agent.cli.bench_report import LABELS, number, show_tried
from edge_agent.jobs.state_dir import locked
from edge_agent.models import measurements
from edge_agent.models.reference_answers import ReferenceAnswers
from hardware.probe import probe

QUICK = ("--grid", "none", "--jobs", "1,2", "--repeat", "2", "--tokens", "8")
LIBRARIES = {"onnx": "onnxruntime-genai", "openvino": "openvino-genai", "llamacpp": "xllamacpp"}
UNITS = ("_ms", "_s", "_tokens", "_tokens_per_s", "tokens_per_s_1_jobs", "tokens_per_s_2_jobs", "_warm", "_beginning")


def environment(**given):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_AGENT_")}
    return inherited | {"NO_COLOR": "1"} | given


def bench(*arguments, returncode=0, columns=80, **environ):
    command = [sys.executable, "-m", "edge_agent", "bench", *map(str, arguments)]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(COLUMNS=str(columns), **environ),
        timeout=100,
        check=False,
    )
    assert ended.returncode == returncode, ended.stdout + ended.stderr
    return ended.stdout if returncode == 0 else " ".join(ended.stderr.split())


@pytest.mark.engine
@pytest.mark.parametrize("name", LIBRARIES)
def test_every_row_has_figures_with_their_units_in_their_names(tmp_path, name):
    """With every backend there is; and nothing is left in the cache."""
    found = json.loads(bench("--synthetic", "tiny", *QUICK, "--backend", name, "--json", XDG_CACHE_HOME=str(tmp_path)))
    rows = found["engine"]
    assert set(LABELS) < set(rows)
    for jobs in (1, 2):
        assert {f"out_tokens_per_s_{jobs}_jobs", f"out_tokens_per_s_{jobs}_jobs_common_beginning"} < set(rows)
    for row, figure in rows.items():
        assert row.endswith(UNITS), row
        assert figure["repetitions"] == (1 if "ready" in row or row == "load_ms" else 2), row
        assert figure["low"] <= figure["median"] <= figure["high"], row
        assert figure["median"] > 0 or row == "reused_tokens_warm", row
    assert found["library"].split()[0] == LIBRARIES[name]
    assert 190 <= rows["prompt_tokens"]["median"] <= 256
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
@pytest.mark.parametrize("columns", [80, 200])
def test_a_person_can_read_it(tmp_path, tiny_model, columns):
    """No line longer than the terminal; the drawing is one document that asks for nothing from elsewhere."""
    plot = tmp_path / "jobs.svg"
    shown = bench(tiny_model, *QUICK, "--plot", plot, columns=columns)
    assert max(map(len, shown.splitlines())) <= columns
    for label in (*LABELS.values(), "common beginning"):
        assert label in shown
    assert ET.parse(plot).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert "url(http" not in plot.read_text().replace('"', "")


def test_what_is_not_known_is_no_number():
    assert [number(value) for value in (None, 0.1234, 12.34, 123.4, 12345.6)] == ["—", "0.123", "12.3", "123", "12,346"]


def test_a_setting_that_is_turned_down_is_said():
    """With its speed, which is why somebody would want it."""
    best = Tried({}, (10.0,))
    fast = Tried({"INFERENCE_PRECISION_HINT": "bf16"}, (20.0,))
    told = "turned down: texts differ from the reference's after 0 tokens"
    found = Calibration(
        best,
        (SettingVerdict(best, sound=True, remark="nothing to beat"), SettingVerdict(fast, sound=False, remark=told)),
    )
    console = Console(file=io.StringIO(), width=120, color_system=None)
    show_tried(found, console)
    (line,) = (line for line in console.file.getvalue().splitlines() if "bf16" in line)
    assert "20" in line
    assert told in line


@pytest.mark.engine
def test_the_settings_of_the_machine_are_tried_and_kept(tmp_path, demo_model):
    """Where an agent with the same settings looks for them, with what the build says on the processor."""
    state_dir = tmp_path / "state"
    found = json.loads(
        bench(
            *(demo_model, "--jobs", "1", "--repeat", "1", "--tokens", "8", "--keep", "--json"),
            EDGE_AGENT_AGENT__STATE_DIR=str(state_dir),
        )
    )
    assert any("session.intra_op.allow_spinning" in each["options"] for each in found["tried"])
    assert found["kept"] == str(state_dir / "models" / "measurements.json")
    kept = measurements.measured(state_dir / "models", probe(), measurements.installed_libraries())
    (measurement,) = (kept[key] for key in kept if key == (measurements.identity(demo_model), "cpu"))
    assert measurement.tokens_per_s == found["engine"]["decode_tokens_per_s"]["median"]
    assert measurement.options == found["options"]  # the decision sets none by itself for this build
    assert ReferenceAnswers(state_dir).canary(demo_model, "onnx", None).reference == "No, the pump"


@pytest.mark.engine
def test_it_does_not_run_beside_an_agent(tmp_path, tiny_model):
    """Both at once would share memory and processors."""
    with locked(tmp_path):
        said = bench(tiny_model, *QUICK, returncode=1, EDGE_AGENT_AGENT__STATE_DIR=str(tmp_path))
    assert "in use by another agent" in said
    assert "while the agent is stopped" in said


@pytest.mark.engine
def test_a_model_that_memory_does_not_hold_is_said_before_it_is_loaded(tmp_path, tiny_model):
    """Its file claims to be larger than any machine."""
    folder = tmp_path / "huge"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "model.onnx.data").touch()
    os.truncate(folder / "model.onnx.data", 2**43)
    assert "free memory or take a smaller build" in bench(folder, *QUICK, returncode=1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "name either a model or --synthetic"),
        (("--synthetic", "tiny", "--jobs", "1,99"), "--jobs: from 1 to 16"),
        (("--synthetic", "tiny", "--threads", "many"), "write numbers like"),
        (("--synthetic", "tiny", "--prompt-tokens", "192"), "like 192+32"),
        (("--synthetic", "tiny", "--prompt-tokens", "99999+99999"), "at most"),
        (("--synthetic", "tiny", "--plot", "a.png"), "draws an .svg"),
        (("--synthetic", "tiny", "--cache", "u3"), "--cache: write some of"),
        (("--synthetic", "tiny", "--keep"), "texts have a meaning"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, told):
    said = bench(*arguments, returncode=2, columns=200)
    assert told in said


def test_a_build_that_is_not_here_is_said_with_how_to_get_it(tmp_path):
    said = bench("phi-3.5-mini", returncode=1, EDGE_AGENT_AGENT__STATE_DIR=str(tmp_path))
    assert "edge-agent models pull phi-3.5-mini" in said


@pytest.mark.engine
def test_ctrl_c_leaves_no_engine_behind(tmp_path):
    """As it comes to the whole group from the terminal, in the middle of an answer that would take long."""
    from edge_agent.synth import TINY, build_text

    deep = build_text(tmp_path / "deep", shape=replace(TINY, layers=96))
    command = (sys.executable, "-m", "edge_agent", "bench", deep, "--grid", "none", "--tokens", "4000")
    with subprocess.Popen(
        command, env=environment(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as running:
        process = psutil.Process(running.pid)

        def answering():
            return [each for each in process.children() if each.name() == "ea-engine" and each.cpu_times().user > 1]

        try:
            engines = wait_for(answering, "an engine at work")
            os.killpg(running.pid, signal.SIGINT)
            said, _ = running.communicate(timeout=PATIENCE_S)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode != 0
    assert b"Traceback" not in said
    assert not any(each.is_running() for each in engines)

"""The verb `synth`."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from edge_agent.cli.synth import synth


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(synth)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("options", [[], ["--size", "demo"], ["--layers", 3, "--say", "ok", "--vision"]])
def test_it_tells_what_was_written(run, tmp_path, options):
    """A row per file and their sum."""
    result = run(tmp_path / "model", *options)
    assert result.exit_code == 0, result.output
    assert "genai_config.json" in result.output
    total = sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    assert f"{total:,}" in result.output


@pytest.mark.parametrize(
    "options",
    [["--say", "aaaaa"], ["--block-size", 33], ["--size", "demo", "--say", "yes"], ["--size", "huge"]],
)
def test_what_cannot_be_is_refused_as_a_wrong_option(run, tmp_path, options):
    """Exit code 2, as for any wrong use, and nothing written."""
    result = run(tmp_path / "model", *options)
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("library", "options"),
    [("onnx", []), ("openvino", ["--backend", "openvino"]), ("openvino", ["--backend", "openvino", "--size", "demo"])],
)
def test_a_missing_library_is_no_traceback(run, tmp_path, monkeypatch, library, options):
    """The install line, and exit code 1."""
    for name in [name for name in sys.modules if name.startswith("edge_agent.synth")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    result = run(tmp_path / "model", *options)
    assert result.exit_code == 1
    assert "pip install" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_no_traceback(run, tmp_path, monkeypatch):
    """What the system says, and exit code 1."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_agent.synth.text.write_model", full)
    result = run(tmp_path / "model")
    assert result.exit_code == 1
    assert "No space left" in result.stderr


def test_every_backend_can_be_chosen():
    """The verb's choices, known without numpy, are those of the package."""
    from edge_agent import synth as models
    from edge_agent.cli.synth import SynthBackend

    assert list(SynthBackend) == list(models.Backend)


def test_the_verb_loads_none_of_the_libraries():
    """The command line with all its verbs stays light."""
    check = "import sys, edge_agent.cli.synth; sys.exit(bool({'numpy', 'onnx', 'openvino'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=30)

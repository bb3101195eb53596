"""Who only asks agents installs the wheel alone: programs and commands work, the rest say what lacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import PATIENCE_S, AgentProcess

from edge_agent.cli.app import VERBS

ROOT = Path(__file__).parents[2]
INSTALL_S = 300

PROGRAM = """
import asyncio
import sys
from pathlib import Path

from edge_agent.client import Access, Chunk, Code, EdgeAgentError, EdgeClient, Handle, Result, Update


def text_of(updates: list[Update]) -> str:
    return "".join(update.text for update in updates if isinstance(update, Chunk))


async def ask(access: Access) -> str:
    async with EdgeClient(access) as client:
        job: Handle = client.submit("edge-01", prompt="Turn on the fan.", max_tokens=8)
        updates = [update async for update in job]
        result: Result = await job
        assert result.text == text_of(updates)
        return result.state


def main(port: int) -> None:
    access = Access("127.0.0.1", port, client_id="line-3", session_expiry_s=60)
    with EdgeClient(access, session_file="line-3.session") as client:
        job = client.submit("edge-01", prompt="Turn on the fan.", max_tokens=8)
        updates = list(job.updates(timeout_s=60))
        assert job.result().text == text_of(updates)
        try:
            client.submit("edge-01", promt="Turn on the fan.")
        except EdgeAgentError as error:
            assert error.code is Code.BAD_REQUEST
    sys.stdout.write(asyncio.run(ask(access)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
"""


def run(*command, cwd, timeout_s=PATIENCE_S):
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("EDGE_AGENT_", "PYTHON"))}
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=environ, timeout=timeout_s, check=False, cwd=cwd
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the programs in an environment that has the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("requester")
    wheel = run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, cwd=folder, timeout_s=INSTALL_S
    )
    if wheel.returncode == 0:
        run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        constraints = ROOT / "constraints.txt"
        (file,) = folder.glob("*.whl")
        pip = folder / "venv/bin/pip"
        wheel = run(pip, "install", "-q", "-c", constraints, file, cwd=folder, timeout_s=INSTALL_S)
    if wheel.returncode:
        lacking = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        lacking(f"the wheel cannot be installed here: {wheel.stderr[-500:]}")
    return folder / "venv/bin"


@pytest.mark.broker
@pytest.mark.engine
@pytest.mark.timeout(INSTALL_S * 3)
def test_a_program_and_submit_are_answered_and_nothing_else_is_written(installed, broker, tmp_path, tiny_model):
    (tmp_path / "program.py").write_text(PROGRAM)
    models = [{"name": "tiny", "path": str(tiny_model), "context_tokens": 256}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent:
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")
        done = run(installed / "python", "-W", "error", "program.py", broker.port, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "succeeded", "")
        command = ("submit", "Turn on the fan.", "--agent", "edge-01", "--max-tokens", 8, "--port", broker.port)
        asked = run(installed / "edge-agent", *command, cwd=tmp_path)
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.strip()


@pytest.mark.timeout(INSTALL_S * 3)
def test_types_of_a_program_are_checked_against_what_is_installed(installed, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "python")
    done = run(*mypy, "program.py", cwd=tmp_path, timeout_s=INSTALL_S)
    assert done.returncode == 0, done.stdout
    (tmp_path / "wrong.py").write_text(PROGRAM.replace("port: int", "port: bytes"))
    done = run(*mypy, "wrong.py", cwd=tmp_path, timeout_s=INSTALL_S)
    assert 'Argument 2 to "Access" has incompatible type "bytes"' in done.stdout


ARGUMENTS = {
    "run": (),
    "demo": (),
    "submit": ("x", "--agent", "a", "--port", "9"),
    "probe": (),
    "explain": (),
    "bench": ("m",),
    "synth": ("model", "--size", "tiny"),
    "acl": ("edge.acl", "--requester", "line-3"),
    "doctor": (),
    "status": ("--state-dir", "."),
    "fleet": ("--port", "9", "--once"),
    "simulate": ("--agents", "1"),
    "install-service": ("--dry-run",),
    "models": ("pull", "phi-3.5-mini-openvino-int4"),
    "jobs": ("list", "--state-dir", "."),
}
LACKING = {"run", "demo", "synth", "doctor", "simulate", "models"}
"""Verbs that need more than the wheel for this."""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.timeout(INSTALL_S * 3)
def test_a_command_works_or_says_which_extra_brings_what_lacks(installed, tmp_path, verb):
    done = run(installed / "edge-agent", verb, *ARGUMENTS[verb], cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "No module" not in done.stderr
    assert ("pip install 'edge-slm-agent[" in done.stderr) == (verb in LACKING), done.stderr

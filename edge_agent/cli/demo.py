"""`edge-agent demo`: a broker, the daemon and four jobs on this machine, nothing left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from edge_agent.base.errors import BackendMissingError
from edge_agent.cli.drawing import red_circle
from edge_agent.cli.follow import follow
from edge_agent.client.client import EdgeClient
from edge_agent.client.handle import Handle
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.private_broker import BrokerError, BrokerMissingError, PrivateBroker

AGENT = "demo"
MODEL = "demo-1m"
CONNECT_S = 10.0
START_S = 60.0
STOP_S = 20.0

QUESTIONS = (
    "Who are you?",
    "Status: temperature 85 C, pump off, door open. Is the temperature too high?",
    "Turn on the fan.",
)
ABOUT_IMAGE = "What is shown in this image?"

SETTINGS = """\
[agent]
id = "{agent}"
state_dir = "{folder}/state"

[mqtt]
host = "{host}"
port = {port}

[[models.serve]]
name = "{model}"
path = "{folder}/model"
context_tokens = 2048

[log]
format = "console"
"""

console = Console(highlight=False)


def demo(
    *,
    chat: Annotated[bool, typer.Option("--chat", help="Go on asking at a prompt.")] = False,
) -> None:
    """Run a broker, an agent with a tiny trained model and four jobs, all on this machine."""
    try:
        with tempfile.TemporaryDirectory(prefix="edge-agent-demo-") as name:
            _demo(Path(name), chat=chat)
    except (BrokerMissingError, BrokerError, BackendMissingError, ImportError, DemoError) as error:
        console.print(Text(str(error), style="red"))
        raise typer.Exit(1) from error


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def _demo(folder: Path, *, chat: bool) -> None:
    from edge_agent.synth import build_demo  # noqa: PLC0415 - needs numpy and onnx, which other verbs do without

    build_demo(folder / "model", vision=True)
    with PrivateBroker(folder=folder / "broker") as broker:
        _step(f"mosquitto listens on {broker.host}:{broker.port}")
        begun_s = time.monotonic()
        with _daemon(folder, broker) as daemon, _client(broker) as client:
            handle = client.submit(AGENT, prompt=QUESTIONS[0])
            _wait_running(handle, daemon, folder)
            _step(
                f"edge-agent runs as process {daemon.pid}, its model was ready after {time.monotonic() - begun_s:.1f} s"
            )
            _ask(QUESTIONS[0], handle)
            for question in QUESTIONS[1:]:
                _ask(question, client.submit(AGENT, prompt=question))
            about = f"{ABOUT_IMAGE} (a red circle)"
            _ask(about, client.submit(AGENT, prompt=ABOUT_IMAGE, images=[red_circle()]))
            if chat:
                _chat(client)
        _step("edge-agent has stopped in order")
    console.print(NEXT, markup=False)


def _step(sentence: str) -> None:
    console.print(Text.assemble(("✓ ", "green"), sentence))


@contextlib.contextmanager
def _daemon(folder: Path, broker: PrivateBroker) -> Iterator[subprocess.Popen[bytes]]:
    config = folder / "edge-agent.toml"
    config.write_text(
        SETTINGS.format(agent=AGENT, folder=folder, host=broker.host, port=broker.port, model=MODEL),
        encoding="utf-8",
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_AGENT_")}
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "edge_agent", "run", "--config", str(config)],
            stderr=log,
            env=environ,
            process_group=0,  # Ctrl-C is the demo's: it stops the daemon in order
        )
    try:
        yield daemon
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


@contextlib.contextmanager
def _client(broker: PrivateBroker) -> Iterator[EdgeClient]:
    with EdgeClient(Access(broker.host, broker.port, client_id="demo-client", clean_start=True)) as client:
        if not client.wait_connected(CONNECT_S):
            raise DemoError(f"the broker at {broker.host}:{broker.port} does not answer")
        yield client


def _wait_running(handle: Handle, daemon: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until the first job has reached the engine, so that what is shown afterwards is the engine's own speed."""
    end_s = time.monotonic() + START_S
    with console.status("edge-agent starts and loads its model …"):
        while handle.status is None or handle.status.state == "queued":
            if daemon.poll() is not None or time.monotonic() > end_s:
                log = (folder / "log").read_text(encoding="utf-8", errors="replace")
                raise DemoError(f"the daemon did not come up; it said:\n{log}")
            time.sleep(0.05)


def _ask(question: str, handle: Handle) -> None:
    console.print(Text.assemble("\n", ("> ", "bold cyan"), (question, "bold")))
    follow(handle, json=False)


def _chat(client: EdgeClient) -> None:
    console.print("\n[dim]A model of one million parameters knows little. An empty line ends the chat.[/dim]")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while text := console.input("\n[bold cyan]>[/bold cyan] "):
            follow(client.submit(AGENT, prompt=text), json=False)


NEXT = """
How to go on with a real model

1. edge-agent explain phi-3.5-mini
   says which build runs best here (some 2.5 GB), and why.
2. Write edge-agent.toml (systemd/edge-agent.toml.example has every key):

   [agent]
   id = "edge-01"
   [mqtt]
   host = "your-broker"
   [models]
   pull = "missing"
   [[models.serve]]
   name = "phi-3.5-mini"

3. edge-agent run --config edge-agent.toml
   fetches that build and answers; from anywhere:
   edge-agent submit "Hello" --agent edge-01 --host your-broker"""

"""Things tests run for real: the daemon as its own process, requesters, other people's clients."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from jsonschema import Draft202012Validator

import edge_agent
from edge_agent.client.client import EdgeClient
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.json_schemas import schemas

FAULTS = Path(__file__).with_name("faults")
PATIENCE_S = 60.0
"""Bound on every wait of a test; what takes this long has failed."""

_VALIDATORS = {name: Draft202012Validator(schema) for name, schema in schemas().items()}


def find_program(name):
    """Return where a program is: on the PATH, or beside this Python, where make puts what it fetches; else None."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def wait_for(condition, what, timeout_s=PATIENCE_S):
    """Return the first true value of a condition; fail with what was waited for."""
    end_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < end_s, f"waited {timeout_s:.0f} s for {what}"
        pause.wait(0.01)
    return value


@contextmanager
def limited(kind, most):
    """Have the kernel give this process no more of something."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


QUIET = {"EDGE_AGENT_GOVERNOR__ENABLED": "false"}
"""The machine that runs the tests may be short of memory; what is tested here must not depend on it."""


def faulty(**settings):
    """Return the environment of a daemon with faults; see faults/sitecustomize.py."""
    root = Path(edge_agent.__file__).parents[1]
    return {"PYTHONPATH": f"{FAULTS}{os.pathsep}{root}"} | settings


class AgentProcess:
    """The daemon, started and killed like a user's."""

    launcher = ()
    """What the daemon's command line is given to, when it is not run as it is."""

    def __init__(self, *, folder, broker, models, agent="edge-01", extra="", telemetry_s=1, environ=None):
        self.folder = folder
        self.environ = environ or {}
        self.agent = agent
        self.state_dir = folder / "state"
        self.config = folder / "edge-agent.toml"
        self.log = folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        tables = "".join(
            "[[models.serve]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in model.items())
            for model in models
        )
        self.config.write_text(
            f'[agent]\nid = "{agent}"\nstate_dir = "{self.state_dir}"\ndrain_s = 10\n'
            f'[mqtt]\nhost = "{broker.host}"\nport = {broker.port}\n{tables}'
            f"[telemetry]\nperiod_s = {telemetry_s}\n{extra}"
        )
        self.process = None

    def start(self):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_AGENT_")}
        environ |= QUIET | self.environ
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.launcher, sys.executable, "-m", "edge_agent", "run", "--config", str(self.config)],
                stderr=log,
                env=environ,
            )
        return self

    @property
    def pid(self):
        return self.process.pid

    def engines(self, word=None):
        """The children as processes, those with a word on their command line; who has just ended is none of them."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children():
                with suppress(psutil.NoSuchProcess):
                    if child.status() != psutil.STATUS_ZOMBIE and (word is None or word in child.cmdline()):
                        found.append(child)
        return found

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def stop(self, timeout_s=30):
        """SIGTERM; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def said(self, event):
        """The log's events of a name."""
        found = []
        for line in self.log.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry.get("event") == event:
                found.append(entry)
        return found

    def wait_said(self, event, count=1):
        return wait_for(lambda: len(self.said(event)) >= count and self.said(event), f"{event} x{count} in the log")

    def __enter__(self):
        return self.start()

    def __exit__(self, _kind, failure, _traceback):
        if failure is not None:
            self._explain()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def _explain(self):
        """Print how a test that failed left it: its last lines, and where each of its threads stands."""
        with suppress(subprocess.TimeoutExpired):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGABRT)  # faulthandler's, see daemon.main
                self.process.wait(10)
        last = self.log.read_text(errors="replace").splitlines()[-120:]
        sys.stderr.write("\n".join([f"--- {self.log}", *last, ""]))


class Listener:
    """A plain MQTT 5 subscriber that keeps everything and validates it against the shipped schemas."""

    def __init__(self, broker, *filters):
        self.messages = []
        self.link = Link(
            Access(broker.host, broker.port, client_id=f"listener-{os.urandom(4).hex()}", clean_start=True),
            subscriptions=tuple(map(Subscription, filters)),
        )
        self.link.on_received.connect(self._receive)
        self.link.on_subscribed.connect(self._subscribed)
        self._ready = threading.Event()

    def _subscribed(self, _refused):
        self._ready.set()

    def _receive(self, inbound, receipt):
        self.messages.append((inbound, inbound.payload and json.loads(inbound.payload)))
        self.link.ack(receipt)

    def of(self, leaf):
        """The bodies that came on topics ending so."""
        return [body for inbound, body in list(self.messages) if inbound.topic.endswith(f"/{leaf}")]

    def wait(self, leaf, count=1, **fields):
        def matching():
            found = [b for b in self.of(leaf) if all(b.get(key) == value for key, value in fields.items())]
            return found if len(found) >= count else None

        return wait_for(matching, f"{count} x {leaf} with {fields}")

    def __enter__(self):
        self.link.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_exception):
        self.link.stop()
        for inbound, body in self.messages:
            check_schema(inbound.topic, body)


def check_schema(topic, body):
    """Fail when a message is not what the shipped schema of its topic says."""
    levels = topic.split("/")
    if "inbox" in levels:
        _VALIDATORS[f"order-{levels[-1]}" if "op_id" in body else levels[-1]].validate(body)
    elif "evt" in levels:
        _VALIDATORS["job-event" if levels[-1] == "status" else levels[-1]].validate(body)


@contextmanager
def requester(broker, name="tester", **access):
    """An EdgeClient, connected."""
    with EdgeClient(Access(broker.host, broker.port, client_id=name, session_expiry_s=3600, **access)) as client:
        assert client.wait_connected(PATIENCE_S)
        yield client


def forget_peak(pid):
    """Let the kernel forget the most memory a process ever held; see clear_refs in proc(5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(pid):
    """The most memory a process held since."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def mosquitto_pub(broker, topic, payload, *arguments, qos=1):
    """Publish with the client everybody has."""
    subprocess.run(
        [
            *("mosquitto_pub", "-V", "mqttv5", "-h", broker.host, "-p", str(broker.port)),
            *("-q", str(qos), "-t", topic),
            *(() if payload is None else ("-m", payload)),
            *arguments,
        ],
        check=True,
        timeout=PATIENCE_S,
    )

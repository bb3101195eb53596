"""What every test may use, and which tests need programs or libraries that a machine may lack."""

import importlib
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

import booted
import pytest
import rich
import structlog
from hypothesis import settings
from running import find_program

from edge_agent.mqtt import private_broker as broker_module
from edge_agent.mqtt.private_broker import BrokerMissingError, PrivateBroker, find_mosquitto

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job hands down that it is ignored
settings.register_profile("untimed", deadline=None)  # how long a case takes is the machine's affair
settings.load_profile("untimed")
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # ports of its own: a broker that comes back finds its port free
    broker_module.PORTS = broker_module.PORTS[int(worker[2:]) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here; in CI its absence is a failure, or nobody would notice that it never ran."""
    needs = (
        ("broker", _broker_missing),
        ("engine", _engine_missing),
        ("prometheus", _prometheus_missing),
        ("systemd", _systemd_missing),
        ("booted", booted.missing),
    )
    for marker, missing in needs:
        if item.get_closest_marker(marker) and (reason := missing()):
            if os.environ.get("CI") == "true":
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


def _broker_missing() -> str | None:
    try:
        find_mosquitto()
    except BrokerMissingError as error:
        return str(error)
    return None


def _engine_missing() -> str | None:
    if importlib.util.find_spec("onnxruntime_genai"):
        return None
    return "onnxruntime-genai is not installed; install it with: pip install -e '.[cpu]'"


def _prometheus_missing() -> str | None:
    if importlib.util.find_spec("prometheus_client") is None:
        return "prometheus-client is not installed; install it with: pip install -e ."
    missing = [name for name in ("prometheus", "promtool") if find_program(name) is None]
    return f"{' and '.join(missing)} not found; fetch them with: make prometheus" if missing else None


def _systemd_missing() -> str | None:
    if shutil.which("systemd-analyze"):
        return None
    return "systemd-analyze is not installed; install it with: make systemd"


@pytest.fixture(autouse=True)
def _own_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a console of its own: rich's, made once in a process, keeps the width it found then."""
    monkeypatch.setattr(rich, "_console", None)


class _Stderr:
    """Standard error as it is when something is written: a test's own, which is closed after it."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@pytest.fixture(scope="session", autouse=True)
def _one_log() -> Iterator[None]:
    """Logs go to standard error; a command run inside a test sets up none, which would last beyond it."""
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Stderr())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_agent.base.log.configure", lambda **_settings: None)
        yield


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[PrivateBroker]:
    """A running private broker; the test carries the marker `broker`."""
    with PrivateBroker(folder=tmp_path / "broker") as running:
        yield running


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with living attention; it never ends a turn by itself under greedy decoding."""
    from edge_agent.synth import build_text

    return build_text(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo model."""
    from edge_agent.synth import build_demo

    return build_demo(tmp_path_factory.mktemp("models") / "demo")


@pytest.fixture(scope="session")
def openvino_genai() -> Any:
    """The library; a test that lacks it is skipped, but not in CI."""
    if importlib.util.find_spec("openvino_genai") is None:
        lacking = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        lacking("openvino-genai is not installed; install it with: pip install -e '.[openvino]'")
    return importlib.import_module("openvino_genai")


@pytest.fixture(scope="session")
def tiny_openvino(openvino_genai: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `tiny_model`, for openvino-genai."""
    from edge_agent.synth import build_text

    return build_text(tmp_path_factory.mktemp("models") / "tiny-openvino", backend="openvino")


@pytest.fixture(scope="session")
def demo_openvino(openvino_genai: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo model, for openvino-genai."""
    from edge_agent.synth import build_demo

    return build_demo(tmp_path_factory.mktemp("models") / "demo-openvino", backend="openvino")


@pytest.fixture(scope="session")
def tiny_openvino_vision(openvino_genai: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that sees images, for openvino-genai."""
    from edge_agent.synth import TINY_VISION, build_text

    return build_text(tmp_path_factory.mktemp("models") / "tiny-openvino-vision", backend="openvino", shape=TINY_VISION)


@pytest.fixture(scope="session")
def demo_openvino_vision(openvino_genai: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo model with its eyes, for openvino-genai."""
    from edge_agent.synth import build_demo

    return build_demo(tmp_path_factory.mktemp("models") / "demo-openvino-vision", backend="openvino", vision=True)

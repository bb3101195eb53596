"""How Home Assistant comes to know this agent: one retained message that describes it as a device with its sensors.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload (since 2024.11). The sensors read what the
agent publishes anyway. What was announced is noted in a file, so that it is taken back when it is switched off.
"""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import __version__
from edge_agent.base.log import get_logger
from edge_agent.base.signal import Signal
from edge_agent.protocol.messages import TELEMETRY_PERIODS, Inbound, Publication
from edge_agent.protocol.topics import Topics
from edge_agent.serving.retained import RetainedTopic

log = get_logger()

ONLINE = b"online"
"""What Home Assistant says on its status topic when it is up."""
STATE_CHARACTERS_MAX = 255
"""The longest state Home Assistant takes (homeassistant/const.py, MAX_LENGTH_STATE_STATE)."""
HEALTHS = ["starting", "ready", "degraded", "draining", "unhealthy", "offline"]

_SPEEDS = (
    "value_json.engines | selectattr('generate_per_second', 'defined') | map(attribute='generate_per_second') | list"
)

_SENSORS: dict[str, dict[str, Any]] = {
    "queue": {
        "name": "Queue",
        "icon": "mdi:tray-full",
        "unit_of_measurement": "jobs",
        "state_class": "measurement",
        "value_template": "{{ value_json.queue.values() | sum if value_json.queue else none }}",
    },
    "speed": {
        "name": "Speed",
        "icon": "mdi:speedometer",
        "unit_of_measurement": "tokens/s",
        "state_class": "measurement",
        "value_template": "{% set speeds = " + _SPEEDS + " %}{{ speeds | sum | round(1) if speeds else none }}",
    },
    "temperature": {
        "name": "Temperature",
        "device_class": "temperature",
        "unit_of_measurement": "°C",
        "state_class": "measurement",
        "value_template": "{{ value_json.hottest_celsius | default(none) }}",
    },
    "memory": {
        "name": "Memory available",
        "device_class": "data_size",
        "unit_of_measurement": "GiB",
        "state_class": "measurement",
        "value_template": "{{ (value_json.memory_available_bytes / 1024 ** 3) | round(2)"
        " if value_json.memory_available_bytes is defined else none }}",
    },
    "processor": {
        "name": "Processor",
        "icon": "mdi:cpu-64-bit",
        "unit_of_measurement": "%",
        "state_class": "measurement",
        "value_template": "{{ value_json.cpu_percent | default(none) }}",
    },
    "answered": {
        "name": "Jobs answered",
        "icon": "mdi:check-all",
        "state_class": "total_increasing",
        "value_template": "{{ value_json.lifetime.succeeded | default(none)"
        " if value_json.lifetime is defined else none }}",
    },
    "reason": {
        "name": "Reason",
        "icon": "mdi:information-outline",
        "entity_category": "diagnostic",
        "value_template": "{{ (value_json.reasons | join('; '))[:255] }}",
    },
}


@dataclass(frozen=True, slots=True)
class WatchAnswers:
    """Where the answers of a watch rule are published: a filter, and whether they are JSON."""

    name: str
    topic: str
    as_json: bool


class HomeAssistant:
    """Announces this agent. `mark` is the file that remembers the topic of what was announced.

    Without a `prefix` nothing is announced, and what once was is taken back.
    """

    def __init__(
        self,
        topics: Topics,
        *,
        prefix: str | None,
        model: str | None,
        period_s: float,
        watches: Sequence[WatchAnswers],
        mark: Path,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topic = config_topic(prefix, topics.agent) if prefix else None
        self.status_topic = status_topic(prefix) if prefix else None
        """Where Home Assistant says that it is up; None when nothing is announced."""
        self._body = json.dumps(
            device(topics, model=model, period_s=period_s, watches=watches), ensure_ascii=False, separators=(",", ":")
        ).encode()
        self._mark = mark
        self.on_said: Signal[Publication] = Signal()
        self._now_s = now_s
        self._kept = RetainedTopic()
        self._overwritten = False

    @property
    def topics(self) -> tuple[str, ...]:
        """What there is to hear: Home Assistant's status, and what the broker keeps as our announcement."""
        return (self.status_topic, self._topic) if self.status_topic and self._topic else ()

    def announce(self) -> None:
        """Say what we are, and take back what we said elsewhere; nothing while the disk takes no note of it."""
        try:
            earlier = self._noted()
            if earlier and earlier != self._topic:
                self.on_said(_retained(earlier, b""))
            if self._topic is None:
                return
            if earlier != self._topic:
                self._mark.write_text(self._topic, encoding="utf-8")
        except OSError as error:
            log.warning("homeassistant.unnoted", reason=error.strerror, next=f"it is tried again; see {self._mark}")
            return
        self._overwritten = False
        self._kept.said(self._body)
        self.on_said(_retained(self._topic, self._body))

    def _noted(self) -> str | None:
        """Return where we announced ourselves; None when nothing says so, or a power cut spoilt it. Raises OSError."""
        noted = self._mark.read_bytes().decode(errors="replace") if self._mark.exists() else ""
        return noted if noted.isprintable() and "\ufffd" not in noted else None

    def seen(self, inbound: Inbound) -> None:
        """Take in what Home Assistant says of itself, or what somebody said in our place."""
        if inbound.topic == self.status_topic:
            if inbound.payload == ONLINE:
                self.announce()
        elif self._kept.foreign(bytes(inbound.payload)):
            log.warning("homeassistant.overwritten", topic=self._topic)
            self._overwritten = True
            self.refresh()

    def refresh(self) -> None:
        """Say again what was overwritten, unless that was done just now. Call it now and then."""
        if self._overwritten and self._kept.may_mend(self._now_s()):
            self.announce()

    def settled(self) -> None:
        """Forget what was taken back, now that the broker has heard of it."""
        if self._topic is None:
            with contextlib.suppress(OSError):  # it is taken back once more after the next start
                self._mark.unlink(missing_ok=True)


def status_topic(prefix: str) -> str:
    """Where Home Assistant says that it is up."""
    return f"{prefix}/status"


def config_topic(prefix: str, agent: str) -> str:
    """Where an agent is announced."""
    return f"{prefix}/device/{agent}/config"


def device(topics: Topics, *, model: str | None, period_s: float, watches: Sequence[WatchAnswers]) -> dict[str, Any]:
    """Return the description of this agent (pure), in the full names of the keys."""
    agent = topics.agent
    telemetry = {"state_topic": topics.event("telemetry"), "expire_after": round(TELEMETRY_PERIODS * period_s)}
    sensors = {"health": _health(topics)}
    sensors |= {key: sensor | telemetry for key, sensor in _SENSORS.items()}
    sensors |= {f"watch_{each.name}": _answers(each) for each in watches}
    described = {"identifiers": [f"edge_agent_{agent}"], "name": agent, "manufacturer": "edge-agent"}
    return {
        "device": described | {"sw_version": __version__} | ({"model": model} if model else {}),
        "origin": {"name": "edge-agent", "sw_version": __version__},
        "availability_topic": topics.event("presence"),
        "availability_template": "{{ value_json.state }}",
        "components": {
            key: {"platform": "sensor", "unique_id": f"edge_agent_{agent}_{key}"} | sensor
            for key, sensor in sensors.items()
        },
    }


def _health(topics: Topics) -> dict[str, Any]:
    return {
        "name": "Health",
        "icon": "mdi:heart-pulse",
        "device_class": "enum",
        "options": HEALTHS,
        "state_topic": topics.event("presence"),
        "value_template": "{{ value_json.health | default('offline') }}",
    }


def _answers(watch: WatchAnswers) -> dict[str, Any]:
    text = "value_json.text" if watch.as_json else "value"
    return {
        "name": f"Answer {watch.name}",
        "icon": "mdi:message-text-outline",
        "state_topic": watch.topic,
        "value_template": f"{{{{ {text}[:{STATE_CHARACTERS_MAX}] }}}}",
    }


def _retained(topic: str, body: bytes) -> Publication:
    return Publication(topic, body, qos=1, retain=True)

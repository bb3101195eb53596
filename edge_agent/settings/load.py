"""The settings: one TOML file, every key also from the environment.

`EDGE_AGENT_MQTT__HOST=broker` overrides `[mqtt] host`; environment wins over the file.
A key nobody knows is refused with the nearest one somebody does.
"""

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from edge_agent.base.errors import PassingError, SettingsError
from edge_agent.base.log import Format, Level
from edge_agent.engine import registry
from edge_agent.settings.broker import DAY_S, ROOT_PATTERN, MqttSection, Root, Section
from edge_agent.settings.upstream import UpstreamSection
from edge_agent.settings.watch import WatchSection

ENV_PREFIX = "EDGE_AGENT_"
ENV_CONFIG = "EDGE_AGENT_CONFIG"
"""Names the settings file for commands that were not given one."""

ID_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
"""An agent's or a client's name; it stands in topics."""

Backend = Annotated[str, AfterValidator(lambda name: registry.checked(name, (*registry.names(), "auto")))]
Device = Annotated[str, AfterValidator(lambda name: registry.checked(name, (*registry.devices(), "auto")))]


def default_id() -> str:
    """Return the host's name as an agent id: lower case, other characters as `-`."""
    name = re.sub(r"[^a-z0-9_-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-_")
    return name[:63] or "edge-agent"


class AgentSection(Section):
    """Who this agent is and where it keeps its state."""

    id: Id = Field(
        default_factory=default_id,
        description="name of this agent, in topics and at the beginning of its MQTT client ids",
    )
    state_dir: Path = Field(Path("/var/lib/edge-agent"), description="folder of the queue; must survive reboots")
    cache_dir: Path | None = Field(
        None, description="folder of what can be made again, as compiled models; `state_dir` when unset"
    )
    drain_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="how long running jobs may finish on SIGTERM before they go back to the queue",
    )
    pools: tuple[Id, ...] = Field(
        (), max_length=8, description="pools whose jobs it takes too, while it is well and has a free lane soon"
    )


class ServeSection(Section):
    """One model to serve."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="what requests call it")
    model: str | None = Field(
        None,
        max_length=127,
        description="family or variant of the catalogue, of which the best build for this machine is taken; `name` "
        "when unset",
    )
    path: Path | None = Field(
        None, description="folder of a build of your own, or a .gguf file, instead of the catalogue's"
    )
    backend: Backend = Field("auto", description="library that runs it")
    device: Device = Field("auto", description="what it runs on; with `path`, auto is cpu")
    fallback: bool = Field(
        True,
        description="when a device fails, go on with the next candidate; with `path` that is the folder on the cpu",
    )
    context_tokens: int = Field(
        4096, ge=64, le=131_072, description="prompt and answer together; bounds the memory of one sequence"
    )
    parallel: int = Field(1, ge=1, le=16, description="sequences at once")
    threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="compute threads; when unset those a calibration found best, else the cores granted to us",
    )
    memory_bytes: int | None = Field(
        None,
        ge=64 * 2**20,
        description="anonymous memory the engine may take; estimated from the build when unset",
    )
    keep_alive_s: float | None = Field(
        None,
        ge=0,
        le=30 * DAY_S,
        description="how long it stays in memory with nothing to do; it is then loaded when a job waits for it. When "
        "unset it is loaded at the start and stays, unless another needs the room",
    )

    upstream: str | None = Field(
        None,
        max_length=63,
        description="name of a served model with an openai table, whose server answers while nothing here can: jobs of "
        "this model then leave the device too",
    )
    openai: UpstreamSection | None = Field(
        None, description="table of a server that answers in the model's place, for jobs that name the model"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ServeSection":
        if self.backend == "openai" and self.openai is None:
            raise ValueError("backend openai needs a table [models.serve.openai] with url and model")
        if self.openai is not None and (self.path or self.model or self.backend not in {"auto", "openai"}):
            raise ValueError("openai excludes path, model and another backend: nothing is loaded on this device")
        if self.upstream is not None and (self.openai is not None or not self.fallback):
            raise ValueError("upstream goes with a model of this device, and with fallback = true")
        if self.path is not None and self.model is not None:
            raise ValueError("model and path exclude each other: model is taken from the catalogue")
        return self

    @property
    def chosen(self) -> bool:
        """Whether a build is chosen for it from the catalogue."""
        return self.path is None and self.openai is None

    @property
    def wanted(self) -> str:
        """The family or variant to take from the catalogue."""
        return self.model or self.name


class ModelsSection(Section):
    """The models."""

    serve: tuple[ServeSection, ...] = Field(
        (ServeSection(name="phi-3.5-mini"),),
        description="[[models.serve]] tables, one per model; phi-3.5-mini as the catalogue has it when there is none",
    )
    dir: Path | None = Field(None, description="folder of the builds; `models` in agent.state_dir when unset")
    catalogue: tuple[Path, ...] = Field((), description="catalogue files of your own, in the form of the shipped one")
    pull: Literal["never", "missing"] = Field(
        "never", description="missing: fetch the best build for this machine when it is not here"
    )
    trial: bool = Field(
        True, description="ask a loaded model a question before it serves; one that fails is not used on that device"
    )
    hub_url: str = Field(
        "https://huggingface.co",
        pattern=r"^https?://",
        description="where builds are fetched from: the hub or a mirror",
    )
    token_file: Path | None = Field(None, description="file with the hub's access token, on one line")
    quota_bytes: int | None = Field(None, ge=2**20, description="what the builds may take of the disk together")
    compiled_bytes: int = Field(
        8 * 2**30, ge=0, description="what libraries compiled for a device may take of the disk; the last load's stays"
    )
    turn_s: float = Field(
        60.0,
        ge=1,
        le=DAY_S,
        description="how long a model with jobs keeps the memory that another's jobs wait for; four times what loading "
        "that one takes, when that is longer",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> "ModelsSection":
        names = [serve.name for serve in self.serve]
        if len(set(names)) != len(names):
            raise ValueError("two [[models.serve]] tables have the same name")
        elsewhere = {serve.name for serve in self.serve if serve.openai is not None}
        if any(serve.upstream not in {None, *elsewhere} for serve in self.serve):
            raise ValueError("upstream must be the name of another [[models.serve]] table with an openai table")
        return self


class QueueSection(Section):
    """The durable queue and its bounds."""

    high_water_jobs: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="unfinished jobs of requesters at which new ones are refused; those of watch rules count apart",
    )
    high_water_bytes: int = Field(
        256 * 2**20, ge=2**20, description="bytes of unfinished requests at which new ones are refused; likewise"
    )
    min_free_bytes: int = Field(
        64 * 2**20, ge=0, description="free disk below which new jobs are refused with storage_full"
    )
    ttl_max_s: int = Field(DAY_S, ge=60, le=7 * DAY_S, description="longest time to live a job may ask for")
    age_step_s: float = Field(
        60.0, gt=0, le=DAY_S, description="seconds of waiting that weigh as much as one step of priority"
    )
    keep_finished_s: int = Field(
        2 * DAY_S, ge=60, description="how long finished jobs are remembered; at least ttl_max_s"
    )
    keep_finished_jobs: int = Field(100_000, ge=1, description="how many finished jobs are remembered")
    keep_finished_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="bytes that finished jobs may hold together, and never over half of the disk's room above "
        "min_free_bytes; beyond it texts are erased, the oldest first, of the requester who has most",
    )

    @model_validator(mode="after")
    def _remember_as_long_as_a_repeat_can_come(self) -> "QueueSection":
        if self.keep_finished_s < self.ttl_max_s:
            raise ValueError("keep_finished_s must be at least ttl_max_s, or a repeated job would run twice")
        return self


class ImagesSection(Section):
    """Images that come with jobs."""

    folders: tuple[Path, ...] = Field(
        (), description="folders of this device whose images a request may name by `file:` URL, and all below them"
    )
    image_bytes: int = Field(16 * 2**20, ge=1024, le=2**30, description="largest image, in bytes as sent")
    packet_bytes: int = Field(
        8 * 2**20,
        ge=2**20,
        le=2**28 - 1,
        description="largest message taken from the broker; what is no image must be smaller all the same",
    )
    quota_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="what the images of requesters' unfinished jobs may take of the disk together; those of watch "
        "rules may take as much again",
    )
    requester_quota_bytes: int = Field(
        64 * 2**20, ge=1024, description="what those of one requester, or of one watch rule, may take of it"
    )
    pixels: int = Field(64_000_000, ge=10_000, le=10**9, description="largest image, in pixels: width times height")

    @model_validator(mode="after")
    def _the_largest_image_has_room(self) -> "ImagesSection":
        if self.requester_quota_bytes < self.image_bytes:
            raise ValueError(
                "requester_quota_bytes must be at least image_bytes, or the largest image could never come"
            )
        return self


class RequestersSection(Section):
    """Who may ask, and for how much; the broker's ACL vouches for the names."""

    allow: tuple[Id, ...] = Field((), max_length=10_000, description="names of those who may ask; empty: everybody")
    admins: tuple[Id, ...] = Field(
        (), max_length=1000, description="names of those who may load, unload, pull and pin models; empty: everybody"
    )
    max_jobs: int | None = Field(None, ge=1, description="unfinished jobs one requester may have here")
    max_bytes: int | None = Field(
        None, ge=1024, description="bytes of unfinished requests at which one requester's next is refused"
    )
    keep_finished_bytes: int = Field(
        64 * 2**20,
        ge=2**18,
        description="bytes that the finished jobs of one requester may hold, and never over a quarter of what all may; "
        "beyond it its oldest texts are erased",
    )


class PrivacySection(Section):
    """What is kept of prompts and answers."""

    keep_text: Literal["until_delivered", "until_pruned"] = Field(
        "until_pruned",
        description="when prompt and answer are erased: until_delivered, once the broker gave the result to a "
        "subscriber (asked for again, it comes without text), or until_pruned, with the job",
    )
    share_prefixes: Literal["client", "all"] = Field(
        "client",
        description="whose prompts an engine need not compute twice where they begin alike: those of one client, so "
        "that nobody can guess another's by `cached_tokens` or by time, or of all",
    )


class LogSection(Section):
    """Logs on stderr."""

    format: Format = Field("json", description="json or console")
    level: Level = Field("info", description="debug, info, warning or error")


class TelemetrySection(Section):
    """Readings published for the fleet."""

    period_s: float = Field(10.0, ge=1, le=3600, description="seconds between two readings, ± 10 %")


class GovernorSection(Section):
    """Holding back before the machine suffers."""

    enabled: bool = Field(True, description="whether the agent holds back when heat, memory, power or disk run short")
    heat_margin_c: float = Field(
        5.0, gt=0, le=50, description="kelvins below a sensor's limit at which the agent begins to hold back"
    )
    memory_stall_percent: float = Field(
        10.0, gt=0, le=100, description="share of time spent waiting for memory at which it does"
    )
    battery_percent: float = Field(
        20.0,
        ge=0,
        le=100,
        description="charge at which a machine on its battery works in pauses; at half of it, models are unloaded",
    )
    step_s: float = Field(
        10.0,
        ge=0.1,
        le=3600,
        description="how long each step may show effect before the next; calm is three times as long",
    )


class HomeAssistantSection(Section):
    """Being found by Home Assistant."""

    enabled: bool = Field(False, description="announce this agent to Home Assistant, through the same broker")
    prefix: Root = Field("homeassistant", description="its discovery prefix")


class PrometheusSection(Section):
    """What Prometheus reads."""

    port: int | None = Field(
        None, ge=1, le=65535, description="port of /metrics, /healthz and /readyz; nothing listens when unset"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; who reaches it may read everything")


class Settings(BaseSettings):
    """Everything the agent can be told."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    agent: AgentSection = Field(default_factory=AgentSection)
    mqtt: MqttSection = Field(default_factory=MqttSection)
    models: ModelsSection = Field(default_factory=ModelsSection)
    queue: QueueSection = Field(default_factory=QueueSection)
    images: ImagesSection = Field(default_factory=ImagesSection)
    requesters: RequestersSection = Field(default_factory=RequestersSection)
    privacy: PrivacySection = Field(default_factory=PrivacySection)
    log: LogSection = Field(default_factory=LogSection)
    telemetry: TelemetrySection = Field(default_factory=TelemetrySection)
    governor: GovernorSection = Field(default_factory=GovernorSection)
    prometheus: PrometheusSection = Field(default_factory=PrometheusSection)
    homeassistant: HomeAssistantSection = Field(default_factory=HomeAssistantSection)
    watch: tuple[WatchSection, ...] = Field(
        (), max_length=64, description="[[watch]] tables: rules from topics to prompts"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file; read nothing else."""
        return env_settings, init_settings


def load(config: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from a TOML file and the environment.

    Raises SettingsError, one line per fault, each naming its key and how to mend it.
    """
    _refuse_unknown_variables(environ)
    try:
        return Settings(**_read(config))
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(fault) for fault in error.errors(include_url=False))) from None


def _read(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise PassingError(f"{config}: {error.strerror or type(error).__name__}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config}: not valid TOML: {error}") from error


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """Refuse a variable with our prefix that no section answers to; the library would ignore it."""
    sections = list(Settings.model_fields)
    for variable in environ:
        if not variable.startswith(ENV_PREFIX) or variable == ENV_CONFIG:
            continue
        section = variable.removeprefix(ENV_PREFIX).split("__")[0].lower()
        if section not in sections:
            raise SettingsError(f"{variable}: unknown section {section!r}{_nearest(section, sections)}")


def _sentence(fault: Any) -> str:
    location = fault["loc"]
    key = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(str(location[-1]), _known_keys(location[:-1]))}"
    if words := _NAMED.get(fault.get("ctx", {}).get("pattern")):
        return f"{key}: {words}"
    said = re.sub(r"^(Value error, |\w+ should (?=be|have|match))", _opening, fault["msg"])
    return f"{key}: {said}"


def _opening(match: re.Match[str]) -> str:
    """Return how our sentence begins where the library says `Input should` and the like."""
    return "must " if match[0].endswith("should ") else ""


_NAMED = {
    ID_PATTERN: "must be a-z 0-9 _ -, a letter or digit first, at most 63 of them",
    ROOT_PATTERN: "must be one or two levels of A-Z a-z 0-9 _ . -, at most 64 in each",
}
"""What patterns say, in words."""

_TABLES: dict[str, type[BaseModel]] = {"serve": ServeSection, "openai": UpstreamSection, "watch": WatchSection}
"""Keys whose value is a table or a list of them, and what each table is."""


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """Return the keys of the table at a location of the settings."""
    table: type[BaseModel] = Settings
    for part in location:
        if isinstance(part, int):
            continue
        table = _TABLES.get(part) or table.model_fields[part].annotation  # type: ignore[assignment]
    return list(table.model_fields)


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"

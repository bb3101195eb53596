"""The bodies of the messages an agent publishes, but for those about orders; see order_payloads.py."""

from collections.abc import Mapping

from pydantic import JsonValue

from edge_agent.base.errors import Code
from edge_agent.jobs.job import Failure, Frozen, JobState, Outcome
from edge_agent.jobs.request import JobName
from edge_agent.jobs.strict import Strict

PROTOCOL_VERSION = 1


class JobRef(Strict):
    """The body of a cancel and of a status command."""

    job_id: JobName


class Payload(Frozen):
    """The body of a message; absent fields are not sent."""

    def encode(self) -> bytes:
        """Return the JSON bytes."""
        return self.model_dump_json(exclude_none=True).encode()


class Status(Payload):
    """A change of a job's state, its refusal, or its progress: `tokens` generated so far in this attempt.

    A job that is `waiting` tells the hashes of the `missing` images.
    """

    agent: str
    job_id: str
    state: str
    state_seq: int
    attempt: int | None = None
    queue_position: int | None = None
    eta_s: float | None = None
    tokens: int | None = None
    missing: tuple[str, ...] | None = None
    error: Failure | None = None


class Chunk(Payload):
    """Text as it comes: `seq` counts from 0 in each attempt; `tokens` stand behind the text."""

    agent: str
    job_id: str
    attempt: int
    seq: int
    text: str
    tokens: int


class _ResultHead(Payload):
    agent: str
    job_id: str
    state: JobState
    attempt: int


class Result(Outcome, _ResultHead):
    """The whole answer, whatever became of the job."""

    model: str
    agent_version: str
    metadata: dict[str, JsonValue]


class _AnswerHead(Payload):
    agent: str
    watch: str
    topic: str
    job_id: str


class Answer(Outcome, _AnswerHead):
    """What became of a message on a watched topic: `text` is what the model said of it."""

    model: str
    agent_version: str


class JobEvent(Payload):
    """A change of a job's state, for monitors: never any text."""

    agent: str
    client: str
    job_id: str
    state: str
    state_seq: int
    attempt: int | None = None
    code: Code | None = None


class Presence(Payload):
    """Whether the agent is there. `offline` counts only when `boot_id` and `conn_seq` equal the last birth's.

    `session`: two agents of one name that say the same here work from copies of one state folder.
    """

    agent: str
    state: str
    boot_id: str
    conn_seq: int
    health: str | None = None
    reason: str | None = None
    session: str | None = None


class ServedModel(Payload):
    """A model this agent serves and how it is; `host` is the server that answers in its place."""

    name: str
    state: str
    backend: str | None = None
    variant: str | None = None
    context_tokens: int | None = None
    parallel: int | None = None
    images_per_prompt: int | None = None
    device: str | None = None
    host: str | None = None
    library: str | None = None
    reason: str | None = None
    pinned: bool | None = None


class Limits(Payload):
    """What the agent takes at most: of a message, of one with an image, of an image, in the queue, of time to live."""

    payload_bytes: int
    queue_jobs: int
    queue_bytes: int
    ttl_s: float
    packet_bytes: int | None = None
    image_bytes: int | None = None


class AcceleratorInfo(Payload):
    """An accelerator of the machine in short; `usable` is absent where that cannot be told."""

    kind: str
    vendor: str
    name: str | None = None
    usable: bool | None = None
    memory_bytes: int | None = None


class MachineInfo(Payload):
    """The machine in short."""

    board: str | None = None

    architecture: str | None = None
    cpu: str | None = None
    physical_cores: int | None = None
    granted_cores: int | None = None
    memory_bytes: int | None = None
    accelerators: tuple[AcceleratorInfo, ...] = ()


class Info(Payload):
    """The birth certificate. Who is silent for three of the `telemetry_period_s` is lost."""

    agent: str
    protocol: int
    version: str
    boot_id: str
    conn_seq: int
    health: str | None = None
    reasons: tuple[str, ...] = ()
    machine: MachineInfo
    models: tuple[ServedModel, ...]
    limits: Limits
    pools: tuple[str, ...] = ()
    telemetry_period_s: float | None = None


class CandidateInfo(Payload):
    """A build that can run here. `behind` says why the one before it is better, `notes` what had to be cut.

    On the device `upstream` it is no build but a model on the server `host`, of a quality that nobody knows.
    """

    variant: str
    backend: str
    device: str
    host: str | None = None
    installed: bool
    quality: int | None = None
    context_tokens: int
    parallel: int
    needed_bytes: int
    free_bytes: int | None = None
    tokens_per_second: float | None = None
    measured: bool
    options: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    behind: str | None = None


class RejectedInfo(Payload):
    """A build that cannot run here, and why."""

    variant: str
    backend: str
    device: str
    reason: str


class SetAsideInfo(Payload):
    """A build on a device that failed and has not worked since: what was seen, and how long it is left alone."""

    variant: str
    backend: str
    device: str
    reason: str
    wait_s: float


class ReferenceInfo(Payload):
    """Whether what a build says on a device was held against the processor's words: `used`, and how it compares.

    Where not, `reason` says why, or what it waits for.
    """

    variant: str
    backend: str
    device: str
    used: bool
    reason: str


class ModelDecision(Payload):
    """What was decided for one served model: candidates best first, an upstream last; a folder that is given is none.

    `set_aside` are those that failed here, the given folder on a device among them. `reference` concerns the device
    that it was last ready on; there is none on the processor.
    """

    name: str
    wanted: str | None = None
    path_given: bool = False
    context_tokens: int
    parallel: int
    candidates: tuple[CandidateInfo, ...] = ()
    rejected: tuple[RejectedInfo, ...] = ()
    set_aside: tuple[SetAsideInfo, ...] = ()
    reference: ReferenceInfo | None = None


class DecisionReport(Payload):
    """Which variant runs where and why, for every served model that is decided."""

    agent: str
    boot_id: str
    models: tuple[ModelDecision, ...]


class EngineReading(Payload):
    """What one engine does; memory in bytes, speeds as running means over its jobs.

    `mapped_bytes` are files in memory, the weights among them: the kernel takes them back when it must. The percentiles
    run from acceptance to the first text, over the last 256 jobs; `cached_share` is of all prompt tokens so far.
    `fallback_from` is the better device that `device` stands in for.
    """

    model: str
    state: str
    reason: str | None = None
    device: str | None = None
    fallback_from: str | None = None
    running: int
    lanes: int | None = None
    context_tokens: int | None = None
    anonymous_bytes: int | None = None
    mapped_bytes: int | None = None
    prompt_per_second: float | None = None
    generate_per_second: float | None = None
    first_token_p50_ms: float | None = None
    first_token_p95_ms: float | None = None
    cached_share: float | None = None


class AcceleratorReading(Payload):
    """How busy an accelerator is; by the kernel's name for it."""

    name: str
    busy_percent: float | None = None
    clock_mhz: float | None = None
    memory_used_bytes: int | None = None
    celsius: float | None = None
    power_watts: float | None = None


class MachineReading(Payload):
    """How the machine is.

    `own_…` is of the agent's control group, `memory_stall_percent` the share of the last ten seconds in which something
    waited for memory, machine or group, whichever is worse. `hottest` is the sensor that is nearest to a limit,
    `heat_margin_c` how near, in K. `slowed` says what heat slows down now. `power_watts` is of `power_of`: the machine,
    a battery it runs on, or its processors. Network bytes count from the interfaces' start.
    """

    cpu_percent: float | None = None
    cpu_mhz: float | None = None
    load_1m: float | None = None
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_stall_percent: float | None = None
    own_memory_bytes: int | None = None
    own_memory_limit_bytes: int | None = None
    swap_used_bytes: int | None = None
    agent_rss_bytes: int | None = None
    disk_free_bytes: int | None = None
    hottest: str | None = None
    hottest_celsius: float | None = None
    heat_margin_c: float | None = None
    slowed: tuple[str, ...] | None = None
    power_watts: float | None = None
    power_of: str | None = None
    joules_per_token: float | None = None
    battery_percent: float | None = None
    on_battery: bool | None = None
    undervoltage: bool | None = None
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    accelerators: tuple[AcceleratorReading, ...] | None = None


class WatchReading(Payload):
    """What one rule did since the agent started.

    `taken` messages became jobs; of those `answered`, `failed` (or expired) and `superseded` by newer ones have ended.
    `dropped` messages made no job, by reason.
    """

    watch: str
    taken: int
    answered: int
    failed: int
    superseded: int
    dropped: Mapping[str, int] = {}


class Telemetry(MachineReading):
    """How the agent is, every few seconds. What cannot be read is absent, never 0.

    `restraint` says how far the agent holds back: 0 not at all, 1 fewer lanes, 2 out of its pools, 3 with pauses
    between steps, 4 models unloaded. `counters` count from the agent's start and are absent while 0; `lifetime` counts
    from the making of the queue and survives restarts.
    """

    agent: str
    version: str
    boot_id: str
    uptime_s: float
    health: str
    reasons: tuple[str, ...] = ()
    restraint: int = 0
    queue: Mapping[str, int] = {}
    queue_oldest_s: float | None = None
    engines: tuple[EngineReading, ...] = ()
    counters: Mapping[str, int] = {}
    lifetime: Mapping[str, int] | None = None
    outbox_waiting: int | None = None
    outbox_in_flight: int | None = None
    outbox_dropped: int | None = None
    reconnects: int | None = None
    watches: tuple[WatchReading, ...] | None = None

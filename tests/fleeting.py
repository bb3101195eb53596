"""A fleet for tests: what agents say, given to a roster."""

from edge_agent.fleet.roster import Roster
from edge_agent.protocol.messages import Inbound
from edge_agent.protocol.payloads import (
    CandidateInfo,
    DecisionReport,
    EngineReading,
    Info,
    Limits,
    MachineInfo,
    ModelDecision,
    Presence,
    RejectedInfo,
    ServedModel,
    Telemetry,
)

ROOT = "edge/v1"
LIMITS = Limits(payload_bytes=1, queue_jobs=1, queue_bytes=1, ttl_s=1.0)


def engine(**fields):
    given = {"model": "phi", "state": "ready", "device": "cpu", "running": 1, "lanes": 2, "generate_per_second": 9.5}
    return EngineReading(**given | fields)


class Band:
    """A roster that listens, and what agents say to it. `now_s` is moved by hand."""

    def __init__(self):
        self.now_s = 0.0
        self.roster = Roster(ROOT)
        self.roster.hearing(0.0)

    def say(self, agent, leaf, payload, **fields):
        """Whatever bytes on a topic of an agent."""
        return self.roster.take(Inbound(f"{ROOT}/agents/{agent}/evt/{leaf}", payload, **fields), self.now_s)

    def presence(self, agent, state="online", *, boot_id="b", conn_seq=1, retained=False, **fields):
        given = {"health": "ready"} if state == "online" else {"reason": "connection lost"}
        body = Presence(agent=agent, state=state, boot_id=boot_id, conn_seq=conn_seq, **given | fields)
        self.say(agent, "presence", body.encode(), retained=retained)

    def info(self, agent, *, boot_id="b", conn_seq=1, retained=False, **fields):
        given = {
            "version": "0.1.0",
            "machine": MachineInfo(board="Raspberry Pi 5", memory_bytes=8 * 2**30),
            "models": (ServedModel(name="phi", state="ready", backend="onnx", device="cpu"),),
        }
        body = Info(agent=agent, protocol=1, boot_id=boot_id, conn_seq=conn_seq, limits=LIMITS, **given | fields)
        self.say(agent, "info", body.encode(), retained=retained)

    def decision(self, agent, *, boot_id="b", retained=False):
        ran = CandidateInfo(
            variant="phi-int4",
            backend="onnx",
            device="cpu",
            installed=True,
            quality=1,
            context_tokens=4096,
            parallel=2,
            needed_bytes=2**32,
            tokens_per_second=9.5,
            measured=False,
        )
        not_run = RejectedInfo(variant="phi-cuda", backend="onnx", device="cuda", reason="there is no NVIDIA GPU")
        model = ModelDecision(name="phi", context_tokens=4096, parallel=2, candidates=(ran,), rejected=(not_run,))
        body = DecisionReport(agent=agent, boot_id=boot_id, models=(model,))
        self.say(agent, "decision", body.encode(), retained=retained)

    def telemetry(self, agent, *, boot_id="b", uptime_s=1.0, health="ready", **fields):
        given = {"engines": (engine(),), "queue": {"waiting": 0, "queued": 3, "running": 1}}
        body = Telemetry(
            agent=agent, version="0.1.0", boot_id=boot_id, uptime_s=uptime_s, health=health, **given | fields
        )
        self.say(agent, "telemetry", body.encode(), qos=0)

    def born(self, agent, *, period_s=10, **fields):
        """Everything a living agent says, once."""
        self.presence(agent)
        self.info(agent, telemetry_period_s=period_s)
        self.decision(agent)
        self.telemetry(agent, **fields)

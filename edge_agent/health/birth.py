"""What an agent is and what it decided, said once per connection and whenever it changes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from edge_agent import __version__
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.health.condition import Condition
from edge_agent.models.choose import Candidate, Decision
from edge_agent.models.fallback import SetAside
from edge_agent.models.reference_answers import Compared
from edge_agent.models.upstream import BACKEND, DEVICE, MEMORY_BYTES, whose
from edge_agent.protocol.messages import PAYLOAD_BYTES_MAX
from edge_agent.protocol.payloads import (
    PROTOCOL_VERSION,
    AcceleratorInfo,
    CandidateInfo,
    DecisionReport,
    Info,
    Limits,
    MachineInfo,
    ModelDecision,
    ReferenceInfo,
    RejectedInfo,
    ServedModel,
    SetAsideInfo,
)
from edge_agent.settings.load import ServeSection, Settings
from hardware.machine import Machine


def birth_certificate(
    settings: Settings,
    machine: Machine,
    engines: Sequence[EngineStatus],
    condition: Condition,
    *,
    boot_id: str,
    conn_seq: int,
) -> Info:
    """Return what the fleet may know of this agent."""
    return Info(
        agent=settings.agent.id,
        protocol=PROTOCOL_VERSION,
        version=__version__,
        boot_id=boot_id,
        conn_seq=conn_seq,
        health=condition.health,
        reasons=condition.reasons,
        machine=MachineInfo(
            board=machine.board.model,
            architecture=machine.cpu.architecture,
            cpu=machine.cpu.model,
            physical_cores=machine.cpu.physical_cores,
            granted_cores=machine.cpu.granted_cores,
            memory_bytes=machine.memory.total_bytes,
            accelerators=tuple(
                AcceleratorInfo(**{name: getattr(each, name) for name in AcceleratorInfo.model_fields})
                for each in machine.accelerators
            ),
        ),
        models=tuple(_served_model(engine) for engine in engines),
        limits=Limits(
            payload_bytes=PAYLOAD_BYTES_MAX,
            packet_bytes=settings.images.packet_bytes,
            image_bytes=settings.images.image_bytes,
            queue_jobs=settings.queue.high_water_jobs,
            queue_bytes=settings.queue.high_water_bytes,
            ttl_s=settings.queue.ttl_max_s,
        ),
        pools=settings.agent.pools,
        telemetry_period_s=settings.telemetry.period_s,
    )


def _served_model(engine: EngineStatus) -> ServedModel:
    limits = engine.limits
    return ServedModel(
        name=engine.model,
        state=engine.phase,
        backend=engine.backend or None,
        variant=engine.variant,
        context_tokens=limits.context_tokens if limits else None,
        parallel=limits.parallel if limits else None,
        images_per_prompt=limits.images_per_prompt if limits else None,
        device=engine.device or None,
        host=engine.host,
        library=engine.library or None,
        reason=engine.reason or None,
        pinned=engine.pinned or None,
    )


def decision_report(
    serves: Sequence[ServeSection],
    decisions: Mapping[str, Decision],
    *,
    agent: str,
    boot_id: str,
    set_aside: Mapping[str, Sequence[SetAside]] = MappingProxyType({}),
    compared: Mapping[str, Compared] = MappingProxyType({}),
) -> DecisionReport:
    """Return what the fleet may know of the decisions; models that are not decided yet are left out.

    `set_aside` are the places, by served model, that failed and have not worked since; `compared` whether what was
    heard where one runs was held against the processor's words.
    """
    named = {serve.name: serve for serve in serves}
    models = [
        _model_decision(
            serve,
            decisions.get(serve.name),
            set_aside.get(serve.name, ()),
            compared.get(serve.name),
            _upstream(serve, whose(serve, named)),
        )
        for serve in serves
        if not serve.chosen or serve.name in decisions
    ]
    return DecisionReport(agent=agent, boot_id=boot_id, models=tuple(models))


def _model_decision(
    serve: ServeSection,
    decision: Decision | None,
    set_aside: Sequence[SetAside],
    compared: Compared | None,
    upstream: Sequence[CandidateInfo],
) -> ModelDecision:
    return ModelDecision(
        name=serve.name,
        wanted=decision.wanted.model if decision else None,
        path_given=serve.path is not None,
        context_tokens=serve.context_tokens,
        parallel=serve.parallel,
        candidates=(*map(_candidate, decision.candidates if decision else ()), *upstream),
        rejected=tuple(
            RejectedInfo(
                variant=each.variant.name, backend=each.variant.backend, device=each.device, reason=each.reason
            )
            for each in (decision.rejected if decision else ())
        ),
        set_aside=tuple(SetAsideInfo(**asdict(each)) for each in set_aside),
        reference=None if compared is None else ReferenceInfo(**asdict(compared)),
    )


def _upstream(serve: ServeSection, owner: ServeSection) -> Sequence[CandidateInfo]:
    """Return the server that may answer for a model, as its last candidate; none where none is allowed."""
    if owner.openai is None:
        return ()
    own = owner is serve
    stands_in = "answers only while nothing can be loaded on this device; the jobs leave it then"
    return (
        CandidateInfo(
            variant=owner.openai.model,
            backend=BACKEND,
            device=DEVICE,
            host=owner.openai.host,
            installed=False,
            context_tokens=owner.context_tokens,
            parallel=owner.parallel,
            needed_bytes=owner.memory_bytes or MEMORY_BYTES,
            measured=False,
            notes=(f"on {owner.openai.host}" + (f", for jobs that name {serve.name}" if own else ""),),
            behind=None if own else stands_in,
        ),
    )


def _candidate(candidate: Candidate) -> CandidateInfo:
    speed = candidate.tokens_per_s
    return CandidateInfo(
        variant=candidate.variant.name,
        backend=candidate.variant.backend,
        device=candidate.device,
        installed=candidate.installed,
        quality=candidate.variant.quality,
        context_tokens=candidate.context_tokens,
        parallel=candidate.parallel,
        needed_bytes=candidate.needed_bytes,
        free_bytes=candidate.free_bytes,
        tokens_per_second=None if speed is None else round(speed, 1),
        measured=candidate.measured,
        options=candidate.options,
        notes=candidate.notes,
        behind=candidate.behind or None,
    )

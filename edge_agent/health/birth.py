"""The birth certificate: what an agent is, said once per connection and whenever it changes."""

from collections.abc import Sequence

from edge_agent import __version__
from edge_agent.engine.supervisor import EngineStatus
from edge_agent.mqtt.payloads import PROTOCOL_VERSION, Info, Limits, MachineInfo, ServedModel
from edge_agent.mqtt.wire import PAYLOAD_BYTES_MAX
from edge_agent.settings import Settings
from hardware.machine import Machine


def birth_certificate(
    settings: Settings, machine: Machine, engines: Sequence[EngineStatus], *, boot_id: str, conn_seq: int
) -> Info:
    """Return what the fleet may know of this agent."""
    return Info(
        agent=settings.agent.id,
        protocol=PROTOCOL_VERSION,
        version=__version__,
        boot_id=boot_id,
        conn_seq=conn_seq,
        machine=MachineInfo(
            architecture=machine.cpu.architecture,
            cpu=machine.cpu.model,
            physical_cores=machine.cpu.physical_cores,
            granted_cores=machine.cpu.granted_cores,
            memory_bytes=machine.memory.total_bytes,
        ),
        models=tuple(_served_model(engine) for engine in engines),
        limits=Limits(
            payload_bytes=PAYLOAD_BYTES_MAX,
            queue_jobs=settings.queue.high_water_jobs,
            queue_bytes=settings.queue.high_water_bytes,
            ttl_s=settings.queue.ttl_max_s,
        ),
    )


def _served_model(engine: EngineStatus) -> ServedModel:
    limits = engine.limits
    return ServedModel(
        name=engine.model,
        state=engine.phase,
        backend=engine.backend,
        context_tokens=limits.context_tokens if limits else None,
        parallel=limits.parallel if limits else None,
        device=engine.device or None,
        library=engine.library or None,
        reason=engine.reason or None,
    )

"""What the settings say, in the words of the parts that need it."""

from edge_agent.health.governor import Policy
from edge_agent.health.snapshot import free_bytes
from edge_agent.jobs.retention import Allowance, RetentionBounds
from edge_agent.mqtt.access import Access
from edge_agent.settings.load import Settings


def access(settings: Settings) -> Access:
    """Return how an agent reaches its broker. Its files are read for each connection, and waited for."""
    return Access.of(settings.mqtt, client_id=settings.agent.id, receive_bytes_max=settings.images.packet_bytes)


def policy(settings: Settings) -> Policy | None:
    """Return when the agent holds back; None: never."""
    asked = settings.governor
    if not asked.enabled:
        return None
    return Policy(
        heat_margin_c=asked.heat_margin_c,
        memory_stall_percent=asked.memory_stall_percent,
        battery_percent=asked.battery_percent,
        disk_free_bytes=settings.queue.min_free_bytes,
        step_s=asked.step_s,
    )


def allowance(settings: Settings) -> Allowance:
    """Return what ended jobs may hold of the disk."""
    return Allowance(
        RetentionBounds(settings.queue.keep_finished_bytes, settings.requesters.keep_finished_bytes),
        min_free_bytes=settings.queue.min_free_bytes,
        free_bytes=lambda: free_bytes(settings.agent.state_dir),
    )

"""Whether what a build says on the processor can be found out beside what runs (pure): in what memory, or why not."""

from dataclasses import dataclass

from edge_agent.models.memory import Build, needed, reserved

CONTEXT_TOKENS = 1024
"""A question of 500 characters in any language, and its answer."""
SPARE_SHARE = 0.1
"""Of the machine's memory stays free beside it: the governor unloads engines at less than half of that."""


@dataclass(frozen=True, slots=True)
class Affordable:
    """`limit_bytes` is what its engine may take; `reason` says why it is not to be had, and is empty when it is."""

    limit_bytes: int = 0
    reason: str = ""


def affordable(
    build: Build | None, *, runs: bool, context_tokens: int, room_bytes: int | None, total_bytes: int | None
) -> Affordable:
    """Decide for a build that `runs` on the processor or not.

    `room_bytes` of memory may be taken now, of `total_bytes`; None when nobody knows. Figures that change from one
    look to the next do not stand in the reason, which is published whenever it is another one.
    """
    if not runs:
        return Affordable(reason="this build does not run on the processor")
    if build is None:
        return Affordable(reason="nobody knows how much memory this build takes on the processor")
    if room_bytes is None or total_bytes is None:
        return Affordable(reason="nobody knows how much memory is free")
    limit_bytes = reserved(needed(build, device="cpu", context_tokens=context_tokens, parallel=1).bytes)
    if limit_bytes + SPARE_SHARE * total_bytes > room_bytes:
        spare = f"{100 * SPARE_SHARE:.0f} % of the memory must stay free"
        return Affordable(reason=f"memory holds no {limit_bytes // 2**20} MiB for it on the processor too; {spare}")
    return Affordable(limit_bytes)

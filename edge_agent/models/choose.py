"""Which build runs where (pure): from machine, catalogue, installed builds, measurements, and what is wanted."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.facts import Build, DeviceFacts
from edge_agent.engine.registry import names, on
from edge_agent.models.catalogue import Catalogue, Variant
from edge_agent.models.memory import Room, Shortage, build_of, fit, reserved, with_settings
from edge_agent.models.runtimes import Runtime, Runtimes
from edge_agent.models.speed import efficiency, expected_per_s
from hardware.machine import Accelerator, Kind, Machine, Memory, Vendor

FAST_ENOUGH_PER_S = 20.0
"""Among builds that answer so fast, the better one wins over the faster: people read 5 to 8 tokens per second, and a
line of two or three jobs still moves at that speed."""
ANY_BYTES_PER_S = 20e9
"""Where the memory's speed is not known, builds are ordered as if it were this; it is never shown."""

NAMES: Mapping[tuple[Vendor | None, Kind | None], str] = {
    (None, Kind.GPU): "GPU",
    (Vendor.NVIDIA, Kind.GPU): "NVIDIA GPU",
    (Vendor.INTEL, Kind.GPU): "Intel GPU",
    (Vendor.INTEL, Kind.NPU): "Intel NPU",
    (Vendor.QUALCOMM, Kind.NPU): "Qualcomm NPU",
}


@dataclass(frozen=True, slots=True)
class WantedModel:
    """What is asked for: `model` is a family or a variant, `backend` and `device` may be `auto`.

    images_bytes: memory that is left free beside a build that sees, for whoever decodes its images.
    """

    model: str
    context_tokens: int = 4096
    parallel: int = 1
    backend: str = "auto"
    device: str = "auto"
    images_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a calibration found best: decode speed of one sequence, the library's settings and threads for it."""

    tokens_per_s: float
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A build that can run.

    needed_bytes, free_bytes: memory with every lane full, and what there is (None: unknown), where it would lie:
    in the machine's when `shares_memory`.
    tokens_per_s: measured, or expected of the memory's speed; None when that is not known.
    options: settings of the library. threads: compute threads, where a calibration found how many.
    notes: what had to be cut. behind: why the one before it is better.
    """

    variant: Variant
    device: str
    context_tokens: int
    parallel: int
    needed_bytes: int
    free_bytes: int | None
    tokens_per_s: float | None
    measured: bool
    options: Mapping[str, str]
    installed: bool
    whole: bool
    shares_memory: bool
    rank_per_s: float
    threads: int | None = None
    notes: tuple[str, ...] = ()
    behind: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A build that cannot run on a device, and why."""

    variant: Variant
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The candidates, best first, and everything that was turned down."""

    wanted: WantedModel
    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]


def free_bytes(memory: Memory) -> int | None:
    """Return the memory a load may take: what is free, and no more than the cgroups leave; None when unreadable."""
    known = [each for each in (memory.available_bytes, memory.limit_bytes, memory.room_bytes) if each is not None]
    return min(known, default=None)


def choose(
    wanted: WantedModel,
    *,
    machine: Machine,
    catalogue: Catalogue,
    runtimes: Runtimes,
    installed: Collection[str] = (),
    measured: Mapping[tuple[str, str], Measurement] | None = None,
) -> Decision:
    """Return what can run, best first, and why nothing else does.

    `installed` are names of variants in the store; `measured` is by variant's name and device. Raises EdgeAgentError
    UNKNOWN_MODEL when the catalogue has nothing of that name.
    """
    variants = catalogue.builds_of(wanted.model)
    if not variants:
        close = difflib.get_close_matches(wanted.model, catalogue.names(), n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else "see edge-agent models list"
        raise EdgeAgentError(Code.UNKNOWN_MODEL, f"the catalogue has no model {wanted.model!r}; {hint}")
    candidates: list[Candidate] = []
    rejected: list[Rejected] = []
    for variant in variants:
        build = build_of(variant, catalogue.family_of(variant))
        most = variant.context_tokens or catalogue.family_of(variant).context_tokens
        for device in variant.devices:
            reason = _unusable(variant, device, wanted=wanted, machine=machine, runtimes=runtimes)
            runtime = runtimes.of(variant.backend, device)
            if reason or runtime is None:
                rejected.append(Rejected(variant, device, reason))
                continue
            accelerator = _accelerator(variant, device, machine)
            seen = (measured or {}).get((variant.name, device))
            built = with_settings(build, seen.options if seen else {})
            judged = _fit(variant, runtime, built, wanted, machine, accelerator, most_tokens=most)
            if isinstance(judged, Rejected):
                rejected.append(judged)
                continue
            expected = expected_per_s(variant, runtime, machine, accelerator)
            speed = seen.tokens_per_s if seen else expected
            candidates.append(
                replace(
                    judged,
                    installed=variant.name in installed,
                    tokens_per_s=speed,
                    rank_per_s=speed or ANY_BYTES_PER_S * efficiency(runtime, machine) / variant.weight_bytes,
                    measured=seen is not None,
                    options={**judged.options, **(seen.options if seen else {})},
                    threads=seen.threads if seen else None,
                )
            )
    return Decision(wanted, _ranked(candidates), tuple(rejected))


def _unusable(variant: Variant, device: str, *, wanted: WantedModel, machine: Machine, runtimes: Runtimes) -> str:
    """Return why a build cannot run on a device at all; empty when it can."""
    if wanted.backend not in {"auto", variant.backend} or wanted.device not in {"auto", device}:
        return f"backend {wanted.backend} and device {wanted.device} are asked for"
    how = on(variant.backend, device)
    if how.kind is not None and (reason := _accelerator_unusable(variant, how, machine)):
        return reason
    if how.efficiency is None:
        note = f": {variant.note}" if variant.note else ""
        missing = f"this version has no {variant.backend} backend for {device}{note}"
        by_path = f"{variant.backend} runs what is put there: name a file or folder by path in a models.serve table"
        return by_path if variant.backend in names() else missing
    if runtimes.of(variant.backend, device) is None:
        if variant.backend in runtimes.missing:
            return runtimes.missing[variant.backend]
        return f"the library of {variant.backend} sees no {device}" + (f"; {how.driver}" if how.driver else "")
    return ""


def _accelerator(variant: Variant, device: str, machine: Machine) -> Accelerator | None:
    """Return what a build would run on; None for the processor."""
    fitting = (
        each
        for each in machine.accelerators
        if on(variant.backend, device).means(each) and (not variant.made_for or each.generation in variant.made_for)
    )
    return next(fitting, None)


def _accelerator_unusable(variant: Variant, how: DeviceFacts, machine: Machine) -> str:
    name = NAMES.get((how.vendor, how.kind), str(how.kind))
    there = [each for each in machine.accelerators if how.means(each)]
    if not there:
        return f"this machine has no {name}"
    fitting = [each for each in there if not variant.made_for or each.generation in variant.made_for]
    if not fitting:
        seen = ", ".join(each.generation or each.name or "unknown" for each in there)
        return f"made for {', '.join(variant.made_for)}; this {name} is {seen}"
    if all(each.usable is False for each in fitting):
        return _closed(name, fitting[0])
    return ""


def _closed(name: str, accelerator: Accelerator) -> str:
    reason = f"the {name} is there but {accelerator.node or 'its device file'} may not be opened"
    return f"{reason}; {accelerator.mend}" if accelerator.mend else reason


def _fit(
    variant: Variant,
    runtime: Runtime,
    build: Build,
    wanted: WantedModel,
    machine: Machine,
    accelerator: Accelerator | None,
    *,
    most_tokens: int,
) -> Candidate | Rejected:
    """Find the most context and lanes that the memory holds."""
    host_free = free_bytes(machine.memory)
    if host_free is not None and build.hidden_size is not None:
        host_free = max(0, host_free - wanted.images_bytes)
    shared = accelerator is None or accelerator.shares_memory
    own = None if accelerator is None or shared else accelerator.memory_bytes or runtime.memory_bytes

    asked = min(wanted.context_tokens, most_tokens)
    lanes = min(wanted.parallel, variant.parallel or wanted.parallel)
    found = fit(build, Room(runtime.device, host_free, own, shared), context_tokens=asked, parallel=lanes)
    if isinstance(found, Shortage):
        return Rejected(variant, runtime.device, str(found))
    tokens, fitting_lanes = found.context_tokens, found.parallel
    notes = []
    if asked < wanted.context_tokens:
        notes.append(f"this build takes {asked} tokens of context")
    if tokens < asked:
        notes.append(f"memory holds {tokens} of {asked} tokens of context")
    if lanes < wanted.parallel:
        notes.append(f"this build takes {lanes} at once")
    if fitting_lanes < lanes:
        notes.append(f"memory holds {fitting_lanes} of {lanes} lanes")
    return Candidate(
        variant=variant,
        device=runtime.device,
        context_tokens=tokens,
        parallel=fitting_lanes,
        needed_bytes=reserved(found.need.bytes),
        free_bytes=host_free if shared else own,
        tokens_per_s=None,
        measured=False,
        options=options_of(variant, runtime.device),
        installed=False,
        whole=(tokens, fitting_lanes) == (wanted.context_tokens, wanted.parallel),
        shares_memory=shared,
        rank_per_s=0.0,
        notes=tuple(notes),
    )


def options_of(variant: Variant, device: str) -> Mapping[str, str]:
    """Return the settings of the library that a build needs on a device, in the library's own spelling."""
    option = on(variant.backend, device).group_size_option
    return {option: str(variant.group_size)} if option and variant.group_size else {}


def _ranked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    ordered = sorted(candidates, key=_rank, reverse=True)
    return tuple(
        replace(each, behind=_behind(each, ordered[place - 1])) if place else each for place, each in enumerate(ordered)
    )


def _rank(candidate: Candidate) -> tuple[float, ...]:
    """Whole before cut, then fast enough, then quality among the fast and speed among the slow."""
    fast = _fast(candidate)
    quality, speed = candidate.variant.quality, candidate.rank_per_s
    return (candidate.whole, fast, *((quality, speed) if fast else (speed, quality)), candidate.installed)


def _fast(candidate: Candidate) -> bool:
    return candidate.tokens_per_s is not None and candidate.tokens_per_s >= FAST_ENOUGH_PER_S


def _behind(candidate: Candidate, better: Candidate) -> str:
    """Say in which point the candidate before it is better."""
    if better.whole and not candidate.whole:
        return "does not hold what is wanted: " + ", ".join(candidate.notes)
    if _fast(better) and not _fast(candidate):
        return f"slower than {FAST_ENOUGH_PER_S:.0f} tokens/s"
    if _fast(candidate) and better.variant.quality > candidate.variant.quality:
        return f"lower quality ({_kind(candidate.variant)} after {_kind(better.variant)})"
    if candidate.tokens_per_s is None or better.tokens_per_s is None:
        return "slower by the size of its weights"
    if better.tokens_per_s > candidate.tokens_per_s:
        return f"slower ({candidate.tokens_per_s:.3g} after {better.tokens_per_s:.3g} tokens/s)"
    return "equal, but not installed" if better.installed and not candidate.installed else "equal"


def _kind(variant: Variant) -> str:
    return f"{variant.precision} {variant.method}" if variant.method else variant.precision

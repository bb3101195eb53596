"""One agent of a fleet in detail: its state and why, its machine, its engines, its last minutes, its decision."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from edge_agent.cli.readings import Rows, facts
from edge_agent.cli.words import (
    STATE_STYLES,
    curve,
    fit,
    heat_style,
    memory_style,
    number,
    size,
    span,
)
from edge_agent.fleet.roster import Member, Sample
from edge_agent.fleet.rows import AgentRow
from edge_agent.protocol.payloads import CandidateInfo, EngineReading, Info, ModelDecision

NAMES = 12
"""Columns of the names at the left."""
REJECTED_MAX = 40
COOL_C = 30.0
"""Where a curve of heat begins."""


def lines(member: Member, row: AgentRow, width: int) -> Iterator[Text]:
    """Yield everything that is known of an agent."""
    yield from _head(row, width)
    for name, value in _known(member, row):
        yield from _fact(name, value, width)
    told = member.telemetry
    if len(member.samples) > 1:
        yield Text()
        yield from _curves(tuple(member.samples), row, width)
    if told is not None and told.engines:
        yield Text()
        yield from _engines(told.engines)
    decision = member.decision
    for each in decision.models if decision else ():
        yield Text()
        yield from _decision(each, width)


def _known(member: Member, row: AgentRow) -> Rows:
    if member.info is not None:
        yield "machine", _machine(member.info)
        if member.info.pools:
            yield "pools", ", ".join(member.info.pools)
        for served in member.info.models:
            more = ("pinned" if served.pinned else None, f"answered by {served.host}" if served.host else None)
            if any(more):
                yield "model", f"{served.name}: {', '.join(filter(None, more))}"
    yield "version", f"{row.version or '?'}, boot {row.boot_id or '?'}"
    if member.faults:
        yield "unreadable", f"{member.faults} of its messages were passed over"
    if member.telemetry is not None:
        yield from facts(member.telemetry)


def _head(row: AgentRow, width: int) -> Iterator[Text]:
    head = Text.assemble((row.agent, "bold"), "  ", (row.state, STATE_STYLES[row.state]))
    if row.last_seen_s is not None:
        head.append(f"  last seen {span(row.last_seen_s)} ago", "dim")
    if row.uptime_s is not None:
        head.append(f", up {span(row.uptime_s)}", "dim")
    yield head
    for reason in row.reasons:
        for part in textwrap.wrap(reason, max(20, width - 2)) or ():
            yield Text(f"  {part}", style=STATE_STYLES[row.state])
    yield Text()


def _fact(name: str, value: str, width: int) -> Iterator[Text]:
    """Yield a name and its value, which may go on below."""
    for place, part in enumerate(textwrap.wrap(value, max(20, width - NAMES)) or [""]):
        yield Text.assemble((fit("" if place else name, NAMES), "dim"), part)


def _machine(info: Info) -> str:
    machine = info.machine
    cores = machine.granted_cores or machine.physical_cores
    parts = [
        machine.board,
        machine.cpu,
        f"{cores} cores" if cores else None,
        size(machine.memory_bytes),
        *(" ".join(filter(None, (each.kind.upper(), each.name or each.vendor))) for each in machine.accelerators),
    ]
    return ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Curve:
    """The course of one reading, drawn between `low` and `high`; `now` says the last value in words."""

    name: str
    values: Sequence[float | None]
    low: float
    high: float
    now: str
    style: str = ""


def _curves(samples: Sequence[Sample], row: AgentRow, width: int) -> Iterator[Text]:
    """Yield the course of what changes, over the last reports."""
    shown = samples[-max(10, width - NAMES - 24) :]
    for each in (_speeds(shown), _jobs(shown), _processor(shown), _memory(shown), _heat(shown, row)):
        if any(value is not None for value in each.values):
            drawn = curve(each.values, low=each.low, high=each.high)
            yield Text.assemble((fit(each.name, NAMES), "dim"), (drawn, each.style or "cyan"), "  ", each.now)


def _speeds(samples: Sequence[Sample]) -> Curve:
    values = [each.tokens_per_s for each in samples]
    most = max((value for value in values if value is not None), default=0.0)
    return Curve("tokens/s", values, 0.0, max(most, 1.0), f"{number(values[-1])}, most {number(most)}")


def _jobs(samples: Sequence[Sample]) -> Curve:
    values = [float(each.jobs) for each in samples]
    return Curve("jobs", values, 0.0, max(*values, 1.0), f"{values[-1]:.0f}, most {max(values):.0f}")


def _processor(samples: Sequence[Sample]) -> Curve:
    values = [each.cpu_percent for each in samples]
    return Curve("processor", values, 0.0, 100.0, _told_as(values[-1], "%"))


def _memory(samples: Sequence[Sample]) -> Curve:
    values = [each.memory_percent for each in samples]
    return Curve("memory", values, 0.0, 100.0, _told_as(values[-1], "%"), memory_style(values[-1]))


def _heat(samples: Sequence[Sample], row: AgentRow) -> Curve:
    values = [each.celsius for each in samples]
    now_c, margin_c = row.heat_celsius, row.heat_margin_c
    limit_c = None if now_c is None or margin_c is None else now_c + margin_c
    said = _told_as(values[-1], "°C") + ("" if limit_c is None else f", limit {limit_c:.0f}")
    return Curve("heat", values, COOL_C, limit_c or 100.0, said, heat_style(margin_c))


def _told_as(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f} {unit}"


def _engines(engines: Sequence[EngineReading]) -> Iterator[Text]:
    wide = max(5, *(len(each.model) for each in engines))
    wide = min(wide, 24)
    yield Text(f"{fit('model', wide)}  state     on    jobs   in/s  out/s   first  memory", style="dim")
    for each in engines:
        jobs = f"{each.running}/{each.lanes}" if each.lanes else str(each.running)
        first = "" if each.first_token_p50_ms is None else f"{each.first_token_p50_ms / 1000:.1f}s"
        taken = None if each.anonymous_bytes is None else each.anonymous_bytes + (each.mapped_bytes or 0)
        yield Text(
            f"{fit(each.model, wide)}  {fit(each.state, 8)}  {fit(each.device or '', 4)} {jobs:>5}"
            f"{number(each.prompt_per_second):>7}{number(each.generate_per_second):>7}{first:>8}  {size(taken)}"
        )


def _decision(decision: ModelDecision, width: int) -> Iterator[Text]:
    asked = f"{decision.context_tokens} tokens of context, {decision.parallel} at once"
    yield Text.assemble(("decision  ", "dim"), (decision.name, "bold"), f"  {asked}")
    if decision.path_given:
        yield Text("  a folder that its settings name")
    for place, each in enumerate(decision.candidates):
        runs = ("could", "dim") if place else ("runs ", "green")
        yield Text.assemble("  ", runs, f"  {_candidate(each)}")
        for remark in filter(None, (each.behind, *each.notes)):
            yield from _below(remark, width)
    for turned_down in decision.rejected[:REJECTED_MAX]:
        yield Text.assemble("  ", ("no   ", "dim"), f"  {turned_down.variant} on {turned_down.device}")
        yield from _below(turned_down.reason, width)
    if (more := len(decision.rejected) - REJECTED_MAX) > 0:
        yield Text(f"  and {more} more", style="dim")


def _candidate(each: CandidateInfo) -> str:
    head = f"{each.variant} on {each.device}, {size(each.needed_bytes)}"
    if each.tokens_per_second is None:
        return head
    return f"{head}, {each.tokens_per_second:g} tok/s {'measured' if each.measured else 'expected'}"


def _below(remark: str, width: int) -> Iterator[Text]:
    for part in textwrap.wrap(remark, max(20, width - 9)):
        yield Text(f"         {part}", style="dim")

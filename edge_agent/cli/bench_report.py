"""What `edge-agent bench` found, for a person and for a program."""

import io
import re
from dataclasses import asdict
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_agent.bench.bench import Report, in_words
from edge_agent.bench.calibrate import Calibration, SettingVerdict
from edge_agent.bench.workload import Figure, out_name

ABSENT = "—"
LABELS = {
    "load_ms": "load and warm-up, ms",
    "ready_first_start_s": "ready, first start, s",
    "ready_second_start_s": "ready, second start, s",
    "prefill_tokens_per_s": "prefill, tokens/s",
    "decode_tokens_per_s": "decode, tokens/s",
    "first_token_cold_ms": "first token, ms",
    "first_token_warm_ms": "… after a common beginning, ms",
    "prompt_tokens": "tokens of a prompt",
    "reused_tokens_warm": "… not computed anew",
}


def as_json(report: Report) -> dict[str, Any]:
    """Return the report for programs: every number's unit stands in its name, None is what was not measured."""
    return {
        "model": report.subject.name,
        "label": report.subject.label,
        "backend": report.spec.backend,
        "device": report.ready.device,
        "library": report.ready.library,
        "options": dict(report.spec.options),
        "threads": report.spec.threads,
        "context_tokens": report.spec.context_tokens,
        "parallel": report.ready.limits.parallel,
        "plan": asdict(report.plan),
        "engine": {row.name: _figure(row) for row in report.rows},
        "tried": None if report.calibration is None else [_tried(each) for each in report.calibration.verdicts],
        "kept": None if report.kept is None else str(report.kept),
    }


def _figure(row: Figure) -> dict[str, float | int | None]:
    return {
        "median": row.median,
        "low": min(row.values, default=None),
        "high": max(row.values, default=None),
        "repetitions": len(row.values),
    }


def _tried(verdict: SettingVerdict) -> dict[str, Any]:
    return {
        "options": dict(verdict.tried.options),
        "decode_tokens_per_s": verdict.tried.tokens_per_s,
        "agreeing_tokens": verdict.agreeing_tokens,
        "sound": verdict.sound,
        "remark": verdict.remark,
    }


def show(report: Report, console: Console) -> None:
    """Print the tables."""
    if report.calibration is not None:
        show_tried(report.calibration, console)
    device, limits = report.ready.device, report.ready.limits
    threads = f", {report.spec.threads} threads" if device == "cpu" else ""
    console.print(Text(f"{report.subject.label}: {report.ready.library} on {device}{threads}", style="bold"))
    console.print(Text(f"settings: {in_words(report.spec.options)}"))
    console.print(_alone(report))
    console.print(_together(report))
    console.print(
        f"medians of n repetitions; prompts of {report.plan.common_tokens} + {report.plan.own_tokens} tokens, answers "
        f"of at most {report.plan.answer_tokens}; {limits.context_tokens} tokens of context in each of "
        f"{limits.parallel} lanes: more jobs than lanes take turns"
    )
    if report.kept is not None:
        console.print(Text(f"kept in {report.kept}: an agent loads this build with these settings from now on"))


def show_tried(calibration: Calibration, console: Console) -> None:
    """Print what was tried and what is thought of it."""
    table = Table(title="settings tried", title_justify="left")
    table.add_column("", width=1)
    table.add_column("settings", overflow="fold", min_width=36)
    table.add_column("tokens/s", justify="right")
    table.add_column("verdict", overflow="fold")
    for verdict in calibration.verdicts:
        best = verdict.tried is calibration.best
        table.add_row(
            "*" if best else "",
            in_words(verdict.tried.options).replace(", ", "\n"),
            number(verdict.tried.tokens_per_s),
            Text(f"best; {verdict.remark}" if best else verdict.remark),
            style="bold" if best else "" if verdict.sound else "dim",
        )
    console.print(table)


def _alone(report: Report) -> Table:
    table = Table(title="one answer at a time", title_justify="left")
    for heading in ("", "engine", "n"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for name, label in LABELS.items():
        row = report.row(name)
        table.add_row(label, number(row.median), str(len(row.values)))
    return table


def _together(report: Report) -> Table:
    table = Table(title="jobs at once, tokens/s out", title_justify="left")
    for heading in ("jobs", "nothing common", "n", "common beginning", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for jobs in report.plan.jobs:
        cells: list[str] = []
        for common in (False, True):
            row = report.row(out_name(jobs, common=common))
            cells += [number(row.median), str(len(row.values))]
        table.add_row(str(jobs), *cells)
    return table


def drawing(report: Report) -> str:
    """Return the tokens per second of jobs at once as an SVG document: two bars for each number of jobs."""
    rows = [
        (jobs, colour, "common beginning" if common else "nothing common", report.row(out_name(jobs, common=common)))
        for jobs in report.plan.jobs
        for common, colour in ((False, "blue"), (True, "yellow"))
    ]
    most = max((row.median or 0.0 for *_, row in rows), default=0.0)
    table = Table("at once", "", "", "tokens/s out", box=None)
    for jobs, colour, common, row in rows:
        table.add_row(str(jobs), common, Bar(most, 0, row.median or 0.0, width=50, color=colour), number(row.median))
    console = Console(record=True, file=io.StringIO(), width=100)
    console.print(table)
    drawn = console.export_svg(title=f"{report.subject.label}: {report.ready.library} on {report.ready.device}")
    return re.sub(r"@font-face \{[^}]*\}", "", drawn)  # these name fonts on the internet; a drawing asks nobody


def number(value: float | None) -> str:
    """Return three significant digits, and never a zero for what is not known."""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

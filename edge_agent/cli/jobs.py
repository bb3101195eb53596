"""`edge-agent jobs`: what an agent has to do and has done, on the machine it runs on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import rich
import typer
from pydantic import JsonValue
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_agent.cli.ending import errors, sentences
from edge_agent.cli.options import Config, Json, StateDir
from edge_agent.cli.words import duration, readable
from edge_agent.control.caller import reach
from edge_agent.control.job_admin import JobAdmin
from edge_agent.control.messages import Ask, CancelJob, JobLine, ListJobs, PruneJobs, Reply, RetryJob, ShowJob
from edge_agent.jobs.ids import job_id as new_id
from edge_agent.jobs.job import JobState
from edge_agent.jobs.request import Request
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.payloads import Result
from edge_agent.protocol.topics import Topics
from edge_agent.settings import load as settings

jobs = typer.Typer(help="The jobs of the agent on this machine, also while it is down.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="A job, as `jobs list` names it.", show_default=False)]
Client = Annotated[str | None, typer.Option(help="Whose job it is, when several clients used the id.")]


@jobs.command("list")
def show_list(
    *,
    state: Annotated[list[JobState] | None, typer.Option(help="Jobs of this state; may be repeated.")] = None,
    client: Annotated[str | None, typer.Option(help="Jobs of this client.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, the newest.")] = 50,
    json: Json = False,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """List jobs, the newest first."""
    with sentences(unsettled=2):
        reply = _asking(config, state_dir)(ListJobs(states=tuple(state or ()), client=client, limit=limit))
    if json:
        rich.print_json(reply.model_dump_json(exclude_none=True))
        return
    found = reply.jobs or ()
    if not found:
        rich.print(Text("no jobs"))
        return
    Console().print(_table(found))
    if reply.more:
        errors.print(Text(f"older ones are left out, see --limit; these are {len(found)}", style="dim"))


@jobs.command()
def show(
    job: JobId,
    *,
    client: Client = None,
    text: Annotated[bool, typer.Option("--text", help="Print prompt and answer too.")] = False,
    json: Json = False,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Show everything of a job; prompt and answer only with --text."""
    with sentences(unsettled=2):
        reply = _asking(config, state_dir)(ShowJob(job_id=job, client=client, text=text))
    if json:
        rich.print_json(reply.model_dump_json(exclude_none=True))
        return
    assert reply.jobs is not None  # noqa: S101 - a job that is not here is an error
    Console().print(_facts(reply.jobs[0], reply.request, reply.result))
    if text:
        _print_text(reply)


@jobs.command()
def cancel(
    job: JobId, *, client: Client = None, json: Json = False, config: Config = None, state_dir: StateDir = None
) -> None:
    """End a job that waits or runs; its requester gets the result, `canceled`."""
    _do(CancelJob(job_id=job, client=client), json=json, config=config, state_dir=state_dir)


@jobs.command()
def retry(
    job: JobId, *, client: Client = None, json: Json = False, config: Config = None, state_dir: StateDir = None
) -> None:
    """Run an ended job again, as a new job with an id of its own.

    Each id has one result for ever: the first job and its result stay as they are. The new job is its client's, who
    finds states and result in the inbox under the new id, with `retry_of` in the metadata.
    """
    _do(RetryJob(job_id=job, client=client), json=json, config=config, state_dir=state_dir)


@jobs.command()
def prune(
    *,
    older_s: Annotated[float, typer.Option(min=0, help="Those that ended longer ago, in seconds.")],
    json: Json = False,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Forget ended jobs with all their text, but those whose result the broker has not taken yet.

    A job that is sent again after it was forgotten runs again.
    """
    pruned, more = 0, True
    with sentences(unsettled=2):
        asking = _asking(config, state_dir)
        while more:
            reply = asking(PruneJobs(older_s=older_s))
            pruned, more = pruned + (reply.pruned or 0), bool(reply.more)
    if json:
        rich.print_json(Reply(pruned=pruned).model_dump_json(exclude_none=True))
    else:
        rich.print(Text(f"{pruned} jobs are forgotten"))


def _do(ask: Ask, *, json: bool, config: Path | None, state_dir: Path | None) -> None:
    with sentences(unsettled=2):
        reply = _asking(config, state_dir)(ask)
    if json:
        rich.print_json(reply.model_dump_json(exclude_none=True))
    else:
        rich.print(Text(reply.said or ""))


def _asking(config: Path | None, state_dir: Path | None) -> Callable[[Ask], Reply]:
    loaded = settings.load(config)
    desk = JobAdmin(
        speech=Speech(Topics(loaded.mqtt.root, loaded.agent.id)),
        resolve=lambda model: model,  # whoever starts next knows what it serves
        new_id=new_id,
    )
    return reach(
        state_dir or loaded.agent.state_dir,
        desk=desk,
        age_step_s=loaded.queue.age_step_s,
        say=lambda sentence: errors.print(Text(sentence, style="dim")),
    )


PLAIN = ("template", "max_tokens", "temperature", "top_p", "top_k", "seed", "repetition_penalty", "ttl_s", "timeout_s")

_STYLES = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.EXPIRED: "yellow",
    JobState.CANCELED: "yellow",
    JobState.RUNNING: "bold cyan",
}


def _table(lines: tuple[JobLine, ...]) -> Table:
    """Return the jobs as a table; ids are whole, for they are copied."""
    wide = Console().width >= 120
    shown = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), header_style="bold")
    shown.add_column("job", overflow="fold", min_width=min(36, max(len(line.job_id) for line in lines)))
    shown.add_column("client", overflow="fold", max_width=None if wide else 14)
    shown.add_column("state", overflow="fold", min_width=11)
    shown.add_column("age", justify="right", no_wrap=True, min_width=6)
    if wide:
        shown.add_column("model", overflow="fold")
        shown.add_column("priority", justify="right")
        shown.add_column("attempt", justify="right")
        shown.add_column("ended", justify="right", no_wrap=True)
    for line in lines:
        more = (line.model, str(line.priority), str(line.attempt or 0), _ago(line.ended_s)) if wide else ()
        shown.add_row(
            Text(line.job_id),
            Text(line.client),
            Text(
                f"{line.state}: {line.code}" if line.code else line.state, style=_STYLES.get(JobState(line.state), "")
            ),
            duration(line.age_s),
            *more,
        )
    return shown


def _facts(line: JobLine, request: Mapping[str, JsonValue] | None, result: Result | None) -> Table:
    shown = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")

    def row(name: str, value: object) -> None:
        if value not in (None, "", {}):
            shown.add_row(name, Text(str(value)))

    row("job", line.job_id)
    row("client", line.client)
    row("state", line.state)
    row("model", line.model)
    row("priority", line.priority)
    row("attempt", line.attempt)
    row("accepted", _ago(line.age_s))
    row("ended", _ago(line.ended_s))
    row("to live", None if line.left_s is None else duration(max(0.0, line.left_s)))
    if request is not None:
        plain = {name: value for name, value in request.items() if name in PLAIN and value is not None}
        row("asked for", ", ".join(f"{name} {value}" for name, value in plain.items()))
    if result is not None:
        row("error", result.error and f"{result.error.code}: {result.error.message}")
        row("finish", result.finish_reason)
        usage, timings = result.usage, result.timings
        row("tokens", usage and f"{usage.prompt_tokens} in, {usage.completion_tokens} out")
        if timings is not None:
            told_ms = {"queue": timings.queue_ms, "prompt": timings.prompt_ms, "generate": timings.generate_ms}
            took = ", ".join(f"{name} {ms / 1000:.1f} s" for name, ms in told_ms.items() if ms is not None)
            row("took", took)
        row("ran on", " ".join(filter(None, (result.variant, result.backend, result.device, result.host))))
    return shown


def _print_text(reply: Reply) -> None:
    console = Console(highlight=False)
    if reply.request is None:
        console.print(Text("the prompt was erased (privacy.keep_text)", style="dim"))
    else:
        for message in Request.model_validate_json(to_json(dict(reply.request))).conversation:
            console.print(Text(f"\n{message.role}", style="bold"))
            console.print(Text(readable(message.text)))
    if reply.result is not None:
        console.print(Text("\nanswer", style="bold"))
        console.print(Text(readable(reply.result.text)))


def _ago(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} ago"

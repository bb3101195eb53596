"""A job on the terminal: its text as it comes, its end in one line."""

import sys

from rich.console import Console
from rich.text import Text

from edge_agent.mqtt.handle import Handle, JobRejectedError
from edge_agent.mqtt.payloads import Chunk, Result, Status

errors = Console(stderr=True, highlight=False)


def follow(handle: Handle, *, json: bool) -> bool:
    """Print a job until its end; return whether it succeeded. With `json`, one line per message instead of text.

    States and the summary go to stderr, so that stdout is the answer alone. Ctrl-C cancels the job.
    """
    printer = _Json() if json else _Plain(handle)
    while True:
        try:
            for update in handle.updates():
                printer.show(update)
            return handle.result().state == "succeeded"
        except KeyboardInterrupt:
            if handle.status is None:
                raise
            handle.cancel()
            errors.print("[dim]canceling …[/dim]")
        except JobRejectedError as error:
            errors.print(Text(f"rejected: {error.code}: {error.message}", style="red"))
            return False


class _Json:
    def show(self, update: Status | Chunk | Result) -> None:
        print(update.encode().decode(), flush=True)  # noqa: T201 - the command's output


class _Plain:
    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._agent = handle.agent
        self._attempt = ("", 0)
        self._printed = ""

    def show(self, update: Status | Chunk | Result) -> None:
        if update.agent != self._agent:
            self._agent = update.agent
            errors.print(f"[dim]{update.agent} has the job[/dim]")
        match update:
            case Chunk():
                attempt = (update.agent, update.attempt)
                if attempt != self._attempt and self._printed:
                    self._write("\n")
                    errors.print(f"[dim]{update.agent} started the job anew[/dim]")
                    self._printed = ""
                self._attempt = attempt
                self._write(update.text)
                self._printed += update.text
            case Result():
                self._finish(update)
            case Status(state="queued", queue_position=position) if position and position > 1:
                errors.print(f"[dim]queued, place {position}[/dim]")
            case Status(state="waiting", missing=missing):
                errors.print(f"[dim]sending {'an image' if len(missing or ()) == 1 else 'images'}[/dim]")
            case _:
                pass

    def _finish(self, result: Result) -> None:
        """Print what chunks did not bring, then what became of the job."""
        if result.text.startswith(self._printed):
            self._write(result.text[len(self._printed) :])
        elif result.text != self._printed:
            self._write("\n" + result.text)
        self._write("\n")
        errors.print(Text(summary(result), style="dim" if result.state == "succeeded" else "red"))

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def summary(result: Result) -> str:
    """Return what became of a job and how fast, in one line."""
    if result.error is not None:
        return f"{result.state}: {result.error.code}: {result.error.message}"
    parts = [f"{result.agent}: {result.model}"]
    if result.usage:
        parts.append(f"{result.usage.completion_tokens} tokens")
    if result.images:
        tokens = sum(image.tokens for image in result.images)
        about = "the image" if len(result.images) == 1 else f"{len(result.images)} images"
        parts.append(f"{tokens} prompt tokens for {about}")
    timings = result.timings
    if timings and timings.generate_per_second:
        parts.append(f"{timings.generate_per_second:.1f} tokens/s")
    if timings and timings.first_token_ms:
        parts.append(f"first after {timings.first_token_ms:.0f} ms")
    if result.finish_reason == "length":
        parts.append("cut at max_tokens")
    return ", ".join(parts)

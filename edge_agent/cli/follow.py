"""A job on the terminal: its text as it comes, its end in one line."""

import sys

from rich.text import Text

from edge_agent.cli.ending import errors
from edge_agent.cli.words import readable
from edge_agent.client.handle import Handle, JobRejectedError
from edge_agent.protocol.payloads import Chunk, Result, Status

SILENT_S = 3.0
"""After so long without a word it is said that nobody answers."""


def follow(handle: Handle, *, json: bool) -> bool:
    """Print a job until its end; return whether it succeeded. With `json`, one line per message instead of text.

    States and the summary go to stderr, so that stdout is the answer alone. Ctrl-C cancels the job.
    """
    printer = _Json() if json else _Plain(handle)
    patience_s: float | None = SILENT_S
    while True:
        try:
            for update in handle.updates(patience_s):
                patience_s = None
                printer.show(update)
            return handle.result().state == "succeeded"
        except TimeoutError:
            patience_s = None
            errors.print(Text(_silence(handle), style="dim"))
        except KeyboardInterrupt:
            if handle.status is None:
                raise
            handle.cancel()
            errors.print("[dim]canceling …[/dim]")
        except JobRejectedError as error:
            errors.print(Text(readable(f"rejected: {error.code}: {error.message}"), style="red"))
            return False


def _silence(handle: Handle) -> str:
    """Return the sentence for a job of which nothing was heard yet."""
    to = f"as {handle.agent}" if handle.pool is None else f"in the pool {handle.pool}"
    heard = f"nobody listens {to}" if handle.unheard else f"no word from who listens {to}"
    if handle.throttled:
        heard = "the broker takes no more of us for now"
    return f"{heard} yet; the job is sent until ttl_s is over, Ctrl-C gives it up (edge-agent fleet shows who is there)"


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
            self._remark(f"{update.agent} has the job")
        match update:
            case Chunk():
                attempt = (update.agent, update.attempt)
                if attempt != self._attempt and self._printed:
                    self._write("\n")
                    self._remark(f"{update.agent} started the job anew")
                    self._printed = ""
                self._attempt = attempt
                self._write(update.text)
                self._printed += update.text
            case Result():
                self._finish(update)
            case Status(state="queued", queue_position=position) if position and position > 1:
                self._remark(f"queued, place {position}")
            case Status(state="waiting", missing=missing):
                self._remark(f"sending {'an image' if len(missing or ()) == 1 else 'images'}")
            case _:
                pass

    def _finish(self, result: Result) -> None:
        """Print what chunks did not bring, then what became of the job."""
        if result.text.startswith(self._printed):
            self._write(result.text[len(self._printed) :])
        elif result.text != self._printed:
            self._write("\n" + result.text)
        self._write("\n")
        errors.print(Text(readable(summary(result)), style="dim" if result.state == "succeeded" else "red"))

    @staticmethod
    def _remark(sentence: str) -> None:
        errors.print(Text(readable(sentence), style="dim"))

    @staticmethod
    def _write(text: str) -> None:
        """Print an answer: on a terminal what can be read of it, else as it came."""
        sys.stdout.write(readable(text) if sys.stdout.isatty() else text)
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

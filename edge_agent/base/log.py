"""Structured logs: events named `noun.verb`, on stderr, never prompt text or answers."""

import contextlib
import logging
import sys
from typing import Any, Literal, TextIO, cast

_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it (6 MB) for tracebacks we never print
import structlog  # noqa: E402

del sys.modules["rich"]
if _rich is not None:
    sys.modules["rich"] = _rich

Format = Literal["json", "console"]
Level = Literal["debug", "info", "warning", "error"]


class _Stderr:
    """Whatever stderr is when something is written: who runs us in a process of theirs may have replaced it.

    A line that cannot be written is lost: nobody's work ends by it.
    """

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # full, broken, closed, None
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()


class _Logger:
    """Says nothing until this process has said where its log goes, as a library does in somebody's program."""

    def __init__(self) -> None:
        self._logger = structlog.get_logger()

    def __getattr__(self, level: str) -> Any:
        return getattr(self._logger, level) if structlog.is_configured() else _say_nothing


def _say_nothing(*_event: Any, **_fields: Any) -> None:
    pass


def get_logger() -> Any:
    """Return a logger; its first use binds it to what `configure`, or the program we are part of, has set up."""
    return _Logger()


def configure(*, format: Format, level: Level) -> None:  # noqa: A002 - the setting's own name
    """Send every log event of this process to stderr; under a service manager that is the journal."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if format == "console":
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )

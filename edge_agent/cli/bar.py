"""Bars for what takes long: the file at work, how much of all is done, how fast, how long still."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from edge_agent.models import fetch


def bar(console: Console) -> Progress:
    """Return a bar that is gone when it is done, and never there where nobody looks."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=20),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        expand=True,
    )


class FileLine:
    """Shows a file at work, and how many bytes of all are done."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def show(self, text: str, done_bytes: int = 0, total_bytes: int | None = None) -> None:
        """Begin the line with what is there already, so that its speed is that of what comes."""
        if self._task is None:
            self._task = self._bar.add_task(text, total=total_bytes, completed=done_bytes)
        self._bar.update(self._task, description=text, completed=done_bytes)


class PullLine:
    """Shows a pull: a line for each phase."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._phase = ""
        self._line = FileLine(bar)

    def show(self, progress: fetch.PullProgress) -> None:
        """Show the newest word of a pull."""
        if progress.phase != self._phase:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._phase, self._line = progress.phase, FileLine(self._bar)
        match progress.phase:
            case "waiting":
                self._line.show(f"process {progress.pid or '?'} pulls it already; waits for it")
            case "asking":
                self._line.show("asks the hub")
            case "checking":
                self._line.show(f"checks {progress.file}", progress.done_bytes, progress.total_bytes)
            case "fetching":
                self._line.show(progress.file, progress.done_bytes, progress.total_bytes)

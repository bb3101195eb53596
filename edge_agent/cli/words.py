"""How readings are written: short, aligned, coloured where they matter."""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

STATE_STYLES = {
    "unhealthy": "bold red",
    "lost": "bold magenta",
    "offline": "magenta",
    "degraded": "yellow",
    "unknown": "dim",
    "starting": "cyan",
    "draining": "cyan",
    "ready": "green",
}
GIB_BYTES, MIB_BYTES = 2**30, 2**20
HOT_C, WARM_C = 5.0, 10.0
"""Kelvins below a sensor's limit at which the agent holds back by default, and twice that."""
FULL_PERCENT, TIGHT_PERCENT = 95.0, 90.0
BLOCKS = "▁▂▃▄▅▆▇█"


def fit(text: str, width: int) -> str:
    """Return a text that takes exactly so many columns: cut with an ellipsis, or filled up."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + "…" if width > 0 else ""


JOINERS = "\u200c\u200d"
"""Join letters, or keep them apart, in Persian and in emoji; they move nothing."""


def readable(text: str) -> str:
    """Return what others wrote, line by line, without what a terminal obeys: see `printable`, which makes one line."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" or letter in JOINERS else "?"
        for letter in text.replace("\r\n", "\n")
    )


def number(value: float | None) -> str:
    """Write a speed."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def span(seconds: float | None) -> str:
    """Write a time in four columns or fewer."""
    if seconds is None:
        return ""
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def duration(seconds: float) -> str:
    """Write a time in full: two digits, and the unit as people know it."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def size(size_bytes: float | None) -> str:
    """Write an amount of memory."""
    if size_bytes is None:
        return ""
    return f"{size_bytes / GIB_BYTES:.1f} GiB" if size_bytes >= GIB_BYTES else f"{size_bytes / MIB_BYTES:.0f} MiB"


def heat_style(margin_c: float | None) -> str:
    """Return a colour for heat, by how near the limit is."""
    if margin_c is None or margin_c > WARM_C:
        return ""
    return "red" if margin_c <= HOT_C else "yellow"


def memory_style(percent: float | None) -> str:
    """Return a colour for how full the memory is."""
    if percent is None or percent < TIGHT_PERCENT:
        return ""
    return "red" if percent >= FULL_PERCENT else "yellow"


def curve(values: Sequence[float | None], *, low: float, high: float) -> str:
    """Return a value's course as blocks, one column each; a space where it was not known."""
    reach = max(high - low, 1e-9)
    top = len(BLOCKS) - 1
    return "".join(
        " " if value is None else BLOCKS[round(top * min(1.0, max(0.0, (value - low) / reach)))] for value in values
    )


def padded(line: Text, width: int, style: str = "") -> Text:
    """Return a line of exactly this width, cut or filled up."""
    line.truncate(width, overflow="ellipsis")
    line.pad_right(max(0, width - cell_len(line.plain)))
    if style:
        line.stylize(style)
    line.no_wrap = True
    return line

"""The fleet as a list: one aligned line for each agent, as much of it as the terminal is wide."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from edge_agent.cli.words import STATE_STYLES, fit, heat_style, memory_style, number, padded, span
from edge_agent.fleet.rows import AgentRow, Totals

MARK = "> "
WIDE = 100
"""From this width on columns stand two apart, and why an agent is not ready has a column of its own."""
NAME_MOST, NAME_LEAST, WHY_LEAST = 28, 8, 16
MORE_WHY = 60
"""Where reasons have more room than this, further columns take some of it."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, the order it sorts by, how a cell is written and coloured.

    At least `least` wide, so that nothing jumps as readings change, and at most `most`. Of those that do not fit, the
    one with the highest `spare` goes first; those that are 0 stay. An `extra` one comes only where there is much room.
    """

    heading: str
    sort: str
    write: Callable[[AgentRow], str]
    style: Callable[[AgentRow], str] = lambda _row: ""
    right: bool = True
    least: int = 4
    most: int = 12
    spare: int = 0
    extra: bool = False


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}%"


def _busy(row: AgentRow) -> str:
    return "" if row.running is None else f"{row.running}/{row.lanes}" if row.lanes else str(row.running)


def _model(row: AgentRow) -> str:
    more = len(row.models) - 1
    return (row.model or "") + (f" +{more}" if more > 0 else "")


def _dim_zero(value: float | None) -> str:
    return "dim" if value == 0 else ""


AGENT = Column("agent", "agent", lambda row: row.agent, lambda _row: "bold", right=False, most=NAME_MOST)
COLUMNS = (
    AGENT,
    Column("health", "health", lambda row: row.state, lambda row: STATE_STYLES[row.state], right=False, least=9),
    Column("model", "model", _model, right=False, most=18, spare=2),
    Column("on", "device", lambda row: row.device or "", right=False, most=8, spare=3),
    Column("busy", "queue", _busy, lambda row: _dim_zero(row.running), spare=7),
    Column("queue", "queue", lambda row: number_of(row.waiting), lambda row: _dim_zero(row.waiting)),
    Column("tok/s", "tokens", lambda row: number(row.tokens_per_s)),
    Column(
        "heat",
        "heat",
        lambda row: "" if row.heat_celsius is None else f"{row.heat_celsius:.0f}°",
        lambda row: heat_style(row.heat_margin_c),
        spare=4,
    ),
    Column(
        "mem", "memory", lambda row: _percent(row.memory_percent), lambda row: memory_style(row.memory_percent), spare=5
    ),
    Column("cpu", "", lambda row: _percent(row.cpu_percent), extra=True),
    Column("power", "", lambda row: "" if row.power_watts is None else f"{row.power_watts:.0f}W", extra=True),
    Column("up", "", lambda row: span(row.uptime_s), extra=True),
    Column("version", "version", lambda row: row.version or "", right=False, most=12, spare=6),
    Column("seen", "seen", lambda row: span(row.last_seen_s), spare=1),
)
WHY = Column("why", "", lambda row: "; ".join(row.reasons), right=False)


def number_of(count: int | None) -> str:
    """Write a count."""
    return "" if count is None else f"{count:,}"


@dataclass(frozen=True, slots=True)
class ListColumns:
    """Columns with their widths, and what stands between them."""

    columns: tuple[tuple[Column, int], ...]
    gap: int

    @property
    def why(self) -> bool:
        """Whether reasons have a column."""
        return self.columns[-1][0] is WHY


def layout(rows: Sequence[AgentRow], width: int, *, name_most: int = NAME_MOST) -> ListColumns:
    """Return which columns fit and how wide they are: as their cells need, names shorter, the spare ones left out."""
    gap = 2 if width >= WIDE else 1
    widths = {
        column: min(
            name_most if column is AGENT else column.most,
            max([column.least, cell_len(column.heading), *(cell_len(column.write(row)) for row in rows)]),
        )
        for column in COLUMNS
        if not column.extra
    }

    def needed() -> int:
        return len(MARK) + sum(widths.values()) + gap * (len(widths) - 1)

    for column in sorted(widths, key=lambda column: -column.spare):
        if needed() <= width or not column.spare:
            break
        del widths[column]
    widths[AGENT] = max(NAME_LEAST, widths[AGENT] - max(0, needed() - width))
    if width >= WIDE:
        left = width - needed() - gap
        for column in COLUMNS:
            if column.extra and left - 6 - gap >= MORE_WHY:
                widths[column] = 5
                left -= 5 + gap
        if left >= WHY_LEAST:
            widths[WHY] = left
    ordered = [*(column for column in COLUMNS if column in widths), *([WHY] if WHY in widths else [])]
    return ListColumns(tuple((column, widths[column]) for column in ordered), gap)


def heading(plan: ListColumns, width: int, *, sort: str = "", reverse: bool = False) -> Text:
    """Return the headings; the column that is sorted by has an arrow where there is room for one."""
    line = Text(" " * len(MARK))
    for place, (column, wide) in enumerate(plan.columns):
        line.append(" " * plan.gap if place else "")
        named = column.heading
        sorted_by = sort and column.sort == sort and named != "busy"
        if sorted_by and len(named) < wide:
            named += "▴" if reverse else "▾"
        line.append(named.rjust(wide) if column.right else named.ljust(wide), "underline" if sorted_by else "")
    return padded(line, width, "dim")


def line_of(row: AgentRow, plan: ListColumns, width: int, *, chosen: bool = False) -> Text:
    """Return an agent's line."""
    line = Text(MARK if chosen else " " * len(MARK))
    for place, (column, wide) in enumerate(plan.columns):
        line.append(" " * plan.gap if place else "")
        written = fit(column.write(row), wide)
        if column.right:
            written = written.rstrip().rjust(wide)
        line.append(written, "" if chosen else column.style(row))
    return padded(line, width, "reverse" if chosen else "")


def totals(rows: Sequence[AgentRow], known: int) -> Text:
    """Return the fleet in one line."""
    found = Totals.of(rows)
    count = f"{len(rows)} of {known} agents" if len(rows) != known else f"{known} agent{'' if known == 1 else 's'}"
    line = Text(count, style="bold")
    for state, agents in found.states.items():
        line.append("  ")
        line.append(f"{agents} {state}", STATE_STYLES[state])
    speed = "" if found.throughput_per_s is None else f", {number(found.throughput_per_s)} tok/s"
    line.append(f"  {found.running:,} run, {found.waiting:,} wait{speed}", "dim")
    return line

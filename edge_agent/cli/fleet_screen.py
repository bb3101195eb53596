"""What stands on the screen of `edge-agent fleet`: a head, the list or one agent, totals, and the keys."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from edge_agent.cli import fleet_detail, fleet_list
from edge_agent.cli.asking import Asking
from edge_agent.cli.words import STATE_STYLES, padded
from edge_agent.fleet.browsing import Browsing, Screen
from edge_agent.fleet.roster import Member
from edge_agent.fleet.rows import AgentRow
from edge_agent.protocol.decode import printable

KEYS = {
    Screen.LIST: "↑↓ choose|⏎ detail|/ filter|s sort|r reverse|t test prompt|q quit",
    Screen.DETAIL: "↑↓ scroll|n next|p previous|t test prompt|esc back|q quit",
    Screen.FILTER: "⏎ keep|esc show all",
    Screen.PROMPT: "⏎ send|esc cancel",
}
"""What each key does, as the last line says it."""
CURSOR = "▏"
AROUND = 5
"""Lines around the list: head, headings, the chosen one's reason, totals, keys."""
AROUND_DETAIL = 3


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be shown. `head` says which fleet; `trouble` why nothing is heard, `hint` why nobody is there."""

    rows: Sequence[AgentRow]
    known: int
    head: str
    trouble: str | None = None
    hint: str = ""
    member: Member | None = None
    member_row: AgentRow | None = None
    asking: Asking | None = None


def page(height: int, place: Screen) -> int:
    """Return how many lines of agents, or of one agent, there are room for."""
    return max(1, height - (AROUND if place in (Screen.LIST, Screen.FILTER) else AROUND_DETAIL))


def screen(scene: Scene, at: Browsing, width: int, height: int) -> tuple[Text, int]:
    """Return the whole screen, and the first line of what is scrolled, which may be less than was asked for."""
    room = page(height, at.place)
    if at.place in (Screen.LIST, Screen.FILTER):
        body, top = _list(scene, at, width, room)
        place = f"{top + 1}-{min(top + room, len(scene.rows))} of {len(scene.rows)}" if len(scene.rows) > room else ""
    else:
        body, top = _detail(scene, at, width, room)
        place = ""
    found = [_head(scene, at, width, place), *body, _keys(at, width)]
    return Text("\n", no_wrap=True, overflow="crop").join(found[:height]), top


def _head(scene: Scene, at: Browsing, width: int, place: str) -> Text:
    line = Text.assemble(("fleet ", "bold"), (scene.head, "dim"))
    if scene.trouble:
        line.append(f"  {scene.trouble}", "red")
    elif at.place is not Screen.FILTER and at.words:
        line.append("  only ", "dim").append(at.words, "bold")
    return padded(line, width - len(place) - 1).append(f" {place}", "dim")


def _keys(at: Browsing, width: int) -> Text:
    line = Text()
    if at.place is Screen.FILTER:
        line.append("filter ", "bold cyan").append(at.words + CURSOR)
        line.append("   ")
    for place, each in enumerate(KEYS[at.place].split("|")):
        key, _, does = each.partition(" ")
        line.append("   " if place else "").append(key, "bold").append(f" {does}", "dim")
    return padded(line, width)


def _list(scene: Scene, at: Browsing, width: int, room: int) -> tuple[list[Text], int]:
    rows, chosen = scene.rows, at.index(scene.rows)
    top = min(max(0, len(rows) - room), max(chosen - room + 1, min(at.top, chosen)))
    plan = fleet_list.layout(rows, width)
    shown = rows[top : top + room]
    body = [fleet_list.heading(plan, width, sort=at.sort, reverse=at.reverse)]
    body += [fleet_list.line_of(row, plan, width, chosen=row.agent == at.chosen) for row in shown]
    if not rows:
        body.append(padded(Text(f"  {'nobody matches' if scene.known else scene.hint}", style="dim"), width))
    body += [padded(Text(), width) for _ in range(room + 1 - len(body))]
    body.append(_why(rows[chosen], width) if rows and not plan.why else padded(Text(), width))
    return [*body, padded(fleet_list.totals(rows, scene.known), width)], top


def _why(row: AgentRow, width: int) -> Text:
    """Return the chosen agent's reason, where there is no column for it."""
    if not row.reasons:
        return padded(Text(), width)
    return padded(Text(f"  {'; '.join(row.reasons)}", style=STATE_STYLES[row.state]), width)


def _detail(scene: Scene, at: Browsing, width: int, room: int) -> tuple[list[Text], int]:
    lines: list[Text] = []
    if at.place is Screen.PROMPT:
        lines += [Text.assemble((f"ask {at.chosen}: ", "bold cyan"), (at.typed + CURSOR)), Text()]
    if scene.asking is not None and scene.asking.agent == at.chosen:
        lines += [*_answer(scene.asking, width), Text()]
    if scene.member is None or scene.member_row is None:
        lines.append(Text(f"nothing is known of {at.chosen}", style="dim"))
    else:
        lines += fleet_detail.lines(scene.member, scene.member_row, width - 1)
    top = min(at.top, max(0, len(lines) - room))
    shown = [padded(line, width) for line in lines[top : top + room]]
    shown += [padded(Text(), width) for _ in range(room - len(shown))]
    below = len(lines) - top - room
    return [*shown, padded(Text(f"{below} more below" if below > 0 else "", style="dim"), width)], top


def _answer(asking: Asking, width: int) -> list[Text]:
    wide = max(20, width - 2)
    lines = [Text(f"asked   {printable(asking.prompt, wide)}", style="cyan")]
    lines += [Text(f"  {part}") for part in textwrap.wrap(printable(asking.text, len(asking.text)), wide)]
    lines += [Text(f"  {part}", style="dim") for part in textwrap.wrap(printable(asking.state), wide)]
    return lines

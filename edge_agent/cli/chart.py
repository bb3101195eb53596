"""A bar chart as an SVG file: groups of bars, one colour per series."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, TOP, RIGHT, BOTTOM = 60, 50, 20, 60
COLOURS = ("#3b6ea5", "#e08a2e", "#5a9e6f", "#8b5fa8")
GAP = 0.25
"""Share of a group that is left empty."""
TICKS = 5


def bars(title: str, groups: Sequence[tuple[str, Sequence[float | None]]], *, series: Sequence[str], unit: str) -> str:
    """Return an SVG document. A group has a name and a value per series; None leaves its place empty."""
    most = max((value for _, values in groups for value in values if value), default=1.0)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 20, title, weight="bold"),
        _text(LEFT, 38, unit),
    ]
    for tick in range(TICKS + 1):
        y = TOP + height * (1 - tick / TICKS)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{most * tick / TICKS:.3g}", anchor="end"))
    room = width / max(len(groups), 1)
    thick = room * (1 - GAP) / max(len(series), 1)
    for place, (name, values) in enumerate(groups):
        left = LEFT + place * room + room * GAP / 2
        parts.append(_text(LEFT + (place + 0.5) * room, TOP + height + 18, name, anchor="middle"))
        for number, value in enumerate(values):
            if value is None:
                continue
            tall = height * value / most
            x, y = left + number * thick, TOP + height - tall
            colour = COLOURS[number % len(COLOURS)]
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{thick * 0.95:.1f}" height="{tall:.1f}" fill="{colour}"/>'
            )
            parts.append(_text(x + thick / 2, y - 4, f"{value:.3g}", anchor="middle"))
    for number, name in enumerate(series):
        x, y = LEFT + number * 220, HEIGHT - 16
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(_text(x + 18, y, name))
    return "\n".join((*parts, "</svg>\n"))


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-family="sans-serif" font-size="12" font-weight="{weight}">{escape(text)}</text>'

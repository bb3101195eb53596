"""Where somebody is who looks at a fleet: what is chosen, sorted, sought, typed; and what each key does. PURE."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from edge_agent.fleet.rows import AgentRow, SortOrder

WORDS_MAX, PROMPT_MAX = 60, 400
"""Letters that can be typed."""
ORDERS = tuple(SortOrder)


class Screen(StrEnum):
    """What is on the screen."""

    LIST = "list"
    DETAIL = "detail"
    FILTER = "filter"
    """The list, while the words are typed that it is filtered by."""
    PROMPT = "prompt"
    """One agent, while a test prompt for it is typed."""


@dataclass(frozen=True, slots=True)
class Browsing:
    """Where somebody is. `chosen` is an agent's name, so that it stays chosen when others move; `top` the first line.

    `ask` is the test prompt for the chosen one, set by the key that sends it; `over` is set by the one that leaves.
    """

    place: Screen = Screen.LIST
    chosen: str | None = None
    sort: SortOrder = SortOrder.HEALTH
    reverse: bool = False
    words: str = ""
    typed: str = ""
    top: int = 0
    ask: str = ""
    over: bool = False

    def settle(self, rows: Sequence[AgentRow]) -> "Browsing":
        """Choose somebody when the chosen one is not among the rows."""
        if self.place in (Screen.DETAIL, Screen.PROMPT) or any(each.agent == self.chosen for each in rows):
            return self
        return replace(self, chosen=rows[0].agent if rows else None)

    def scrolled(self, top: int) -> "Browsing":
        """Begin at this line: there was no more to be seen further down."""
        return replace(self, top=top)

    def sent(self) -> "Browsing":
        """The prompt was sent."""
        return replace(self, ask="")

    def index(self, rows: Sequence[AgentRow]) -> int:
        """Return where the chosen one stands; 0 when it is not among the rows."""
        return next((place for place, each in enumerate(rows) if each.agent == self.chosen), 0)

    def press(self, key: str, rows: Sequence[AgentRow], *, page: int) -> "Browsing":
        """Return where a key leads; `page` is how many lines a page has."""
        match self.place:
            case Screen.FILTER:
                return self._type_words(key)
            case Screen.PROMPT:
                return self._type_prompt(key)
            case Screen.DETAIL:
                return self._in_detail(key, rows, page)
            case _:
                return self._in_list(key, rows, page)

    def _in_list(self, key: str, rows: Sequence[AgentRow], page: int) -> "Browsing":
        does: dict[str, dict[str, Any]] = {
            "q": {"over": True},
            "s": {"sort": self._order(1), "reverse": False},
            "S": {"sort": self._order(-1), "reverse": False},
            "r": {"reverse": not self.reverse},
            "/": {"place": Screen.FILTER},
            "escape": {"words": ""},
        }
        if self.chosen:
            does["enter"] = does["right"] = does["l"] = {"place": Screen.DETAIL, "top": 0}
            does["t"] = {"place": Screen.PROMPT, "typed": "", "top": 0}
        return replace(self, **does[key]) if key in does else self._move(_steps(key, page), rows)

    def _in_detail(self, key: str, rows: Sequence[AgentRow], page: int) -> "Browsing":
        does: dict[str, dict[str, Any]] = {
            "q": {"over": True},
            "t": {"place": Screen.PROMPT, "typed": "", "top": 0},
        }
        if key in ("escape", "left", "h", "backspace", "enter"):
            return replace(self, place=Screen.LIST, top=0)
        if key in ("n", "p"):
            return replace(self._move(1 if key == "n" else -1, rows), top=0)
        return replace(self, **does.get(key, {"top": max(0, self.top + _steps(key, page))}))

    def _order(self, step: int) -> SortOrder:
        return ORDERS[(ORDERS.index(self.sort) + step) % len(ORDERS)]

    def _type_words(self, key: str) -> "Browsing":
        match key:
            case "enter" | "up" | "down":
                return replace(self, place=Screen.LIST)
            case "escape":
                return replace(self, place=Screen.LIST, words="")
            case _:
                return replace(self, words=_typed(self.words, key, WORDS_MAX))

    def _type_prompt(self, key: str) -> "Browsing":
        match key:
            case "escape":
                return replace(self, place=Screen.DETAIL, typed="")
            case "enter":
                return replace(self, place=Screen.DETAIL, typed="", ask=self.typed.strip())
            case _:
                return replace(self, typed=_typed(self.typed, key, PROMPT_MAX))

    def _move(self, steps: int, rows: Sequence[AgentRow]) -> "Browsing":
        if not rows or not steps:
            return self
        place = min(max(0, self.index(rows) + steps), len(rows) - 1)
        return replace(self, chosen=rows[place].agent)


_FAR = 1_000_000


def _steps(key: str, page: int) -> int:
    return {
        "up": -1,
        "k": -1,
        "down": 1,
        "j": 1,
        "page up": -page,
        "page down": page,
        " ": page,
        "home": -_FAR,
        "g": -_FAR,
        "end": _FAR,
        "G": _FAR,
    }.get(key, 0)


def _typed(text: str, key: str, most: int) -> str:
    match key:
        case "backspace":
            return text[:-1]
        case "clear":
            return ""
        case _:
            return (text + key)[:most] if len(key) == 1 else text

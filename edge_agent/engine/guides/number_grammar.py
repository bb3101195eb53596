"""Numbers between two whole ones, as parts of a grammar (pure)."""

from collections.abc import Iterator

NUMBER_MAX = 10**15
"""Beyond, not every whole number is a number in JSON's readers."""


def integers(low: int | None, high: int | None) -> str:
    """Return the whole numbers from one to another, both included; None: without end."""
    parts: list[str] = []
    if low is None or low < 0:
        nearest = max(1, -high) if high is not None else 1
        parts += [f'"-" {each}' for each in _naturals(nearest, None if low is None else -low)]
    if high is None or high >= 0:
        parts += _naturals(max(low or 0, 0), high)
    return f"({' | '.join(parts)})"


def numbers(low: int | None, high: int | None) -> str:
    """Return the same with what lies between them, written without exponent."""
    parts = [integers(low, high)]
    if low is None or low < 0:
        nearest = max(0, -high) if high is not None else 0
        parts += [f'"-" {each} "." [0-9]+' for each in _naturals(nearest, None if low is None else -low - 1)]
    if high is None or high > 0:
        parts += [f'{each} "." [0-9]+' for each in _naturals(max(low or 0, 0), None if high is None else high - 1)]
    return f"({' | '.join(parts)})"


def _naturals(low: int, high: int | None) -> Iterator[str]:
    """Return the digits of the numbers from one to another, by how many digits they have."""
    width = len(str(low))
    if high is None:
        yield _digits(str(low), "9" * width)
        yield f"[1-9] [0-9]{{{width},}}"
        return
    while low <= high:
        last = min(high, 10**width - 1)
        yield _digits(str(low), str(last))
        low, width = last + 1, width + 1


def _digits(low: str, high: str) -> str:
    """Return the numbers between two of as many digits."""
    if low == high:
        return f'"{low}"' if low else ""
    if set(low) == {"0"} and set(high) == {"9"}:
        return f"[0-9]{{{len(low)}}}"
    if len(low) == 1:
        return f"[{low}-{high}]"
    first, last, others = int(low[0]), int(high[0]), len(low) - 1
    if first == last:
        return f'"{first}" {_digits(low[1:], high[1:])}'
    parts = [f'"{first}" {_digits(low[1:], "9" * others)}']
    if last - first > 1:
        parts.append(f"[{first + 1}-{last - 1}] [0-9]{{{others}}}")
    parts.append(f'"{last}" {_digits("0" * others, high[1:])}')
    return f"({' | '.join(parts)})"

"""Numbers between two whole ones, as parts of a grammar (pure)."""

import math
from collections.abc import Iterator
from fractions import Fraction

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


DECIMALS = range(2, 10)
"""Digits behind the point that are tried for numbers whose bounds are no whole ones, or not of them."""


def decimals(low: Fraction | None, high: Fraction | None, *, above: bool, below: bool) -> str:
    """Return numbers between two, written with as many digits behind the point as it takes, or with none.

    With `above` the lower bound itself is none of them, with `below` the upper. Raises ValueError when none is found.
    """
    for digits in DECIMALS:
        scale = 10**digits
        least, most = _scaled(low, high, scale, above=above, below=below)
        whole = _scaled(low, high, 1, above=above, below=below)
        parts: list[str] = []
        if None in whole or whole[0] <= whole[1]:  # type: ignore[operator] # none of them is None
            parts.append(integers(*whole))
        if least is None or least < 0:
            nearest = max(1, -most) if most is not None else 1
            parts += [f'"-" {each}' for each in _pointed(nearest, None if least is None else -least, digits)]
        if most is None or most >= 0:
            parts += _pointed(max(least or 0, 0), most, digits)
        if parts:
            return f"({' | '.join(parts)})"
    raise ValueError("no number lies between")


def _scaled(
    low: Fraction | None, high: Fraction | None, scale: int, *, above: bool, below: bool
) -> tuple[int | None, int | None]:
    """Return the least and the greatest whole number of parts, `scale` to one, that lie between two numbers."""
    least = None if low is None else math.floor(low * scale) + 1 if above else math.ceil(low * scale)
    most = None if high is None else math.ceil(high * scale) - 1 if below else math.floor(high * scale)
    return least, most


def _pointed(low: int, high: int | None, digits: int) -> Iterator[str]:
    """Return numbers with a point from one to another, both given in parts, 10**digits to one."""
    if high is not None and low > high:
        return
    scale, every = 10**digits, f"[0-9]{{{digits}}}"
    first, start = divmod(low, scale)
    last, end = (None, 0) if high is None else divmod(high, scale)
    fraction = f"{start:0{digits}}", f"{end if first == last else scale - 1:0{digits}}"
    yield f'"{first}" "." {_digits(*fraction)}'
    if last is None or last - first > 1:
        yield from (f'{each} "." {every}' for each in _naturals(first + 1, None if last is None else last - 1))
    if last is not None and last > first:
        yield f'"{last}" "." {_digits("0" * digits, f"{end:0{digits}}")}'


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

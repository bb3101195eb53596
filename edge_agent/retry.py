"""When a server that could not serve us is asked again (pure)."""

import email.utils
import re


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Return how long a server asks to wait, as seconds or a date says; None when it says nothing we understand."""
    if header is None:
        return None
    if re.fullmatch(r"\d{1,9}", header.strip()):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now_s)
    except ValueError:
        return None

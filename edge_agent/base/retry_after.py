"""When a server that could not serve us is asked again (pure)."""

import email.utils
import re


def retry_after_s(header: str | None, now_s: float, *, sent: str | None = None) -> float | None:
    """Return how long a server asks to wait, as seconds or a date says; None when it says nothing we understand.

    `sent` is the date by the server's own clock, against which its date counts, whatever our clock shows; `now_s` is
    what ours shows.
    """
    if header is None:
        return None
    if re.fullmatch(r"\d{1,9}", header.strip()):
        return float(header)
    until_s, sent_s = _unix_s(header), _unix_s(sent or "")
    return None if until_s is None else max(0.0, until_s - (now_s if sent_s is None else sent_s))


def _unix_s(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None

"""Whose a certificate is and until when: what the agent wants to know of its own (X.509: RFC 5280, section 4.1).

Python's ssl reads a peer's certificate only. Nothing is trusted because of what is read here.
"""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

FILE_BYTES_MAX = 2**20
_SEQUENCE, _SET, _VERSION, _UTC_TIME, _LONG_TIME = 0x30, 0x31, 0xA0, 0x17, 0x18
_COMMON_NAME = bytes.fromhex("0603550403")
_END = "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Certificate:
    """The subject's common name, None when it has none, and from when to when it is valid."""

    common_name: str | None
    begins: datetime
    ends: datetime


def read(file: Path) -> Certificate:
    """Return what the first certificate of a PEM file says. Raises OSError, or ValueError when it holds none."""
    with file.open("rb") as opened:
        text = opened.read(FILE_BYTES_MAX).decode("ascii", "replace")
    begin = text.find("-----BEGIN CERTIFICATE-----")
    end = text.find(_END, begin)
    if begin < 0 or end < 0:
        raise ValueError("it holds no certificate in PEM form")
    return parse(ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)]))


def parse(der: bytes) -> Certificate:
    """Return what a certificate says. Raises ValueError when it is none."""
    (signed,) = _parts(der)[:1]
    fields = _parts(_parts(signed[1])[0][1])
    if fields and fields[0][0] == _VERSION:
        fields = fields[1:]
    if len(fields) < 5 or fields[3][0] != _SEQUENCE:
        raise ValueError("it is no X.509 certificate")
    validity = _parts(fields[3][1])
    if len(validity) != 2:
        raise ValueError("its validity is no pair of times")
    begins, ends = (_time(*each) for each in validity)
    return Certificate(_common_name(fields[4][1]), begins, ends)


def _parts(body: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of the values in a row (X.690, section 8.1). Raises ValueError when one is cut."""
    found, at = [], 0
    while at < len(body):
        head = body[at : at + 2]
        if len(head) < 2:
            raise ValueError("a value is cut")
        size, at = head[1], at + 2
        if size & 0x80:
            width = size & 0x7F
            if not 1 <= width <= 4:
                raise ValueError("a length is none that certificates have")
            size, at = int.from_bytes(body[at : at + width], "big"), at + width
        content = body[at : at + size]
        if len(content) < size:
            raise ValueError("a value is cut")
        found.append((head[0], content))
        at += size
    if not found:
        raise ValueError("it is empty")
    return found


def _time(tag: int, content: bytes) -> datetime:
    form = {_UTC_TIME: "%y%m%d%H%M%SZ", _LONG_TIME: "%Y%m%d%H%M%SZ"}.get(tag)
    if form is None:
        raise ValueError("a time has no form that certificates have")
    found = datetime.strptime(content.decode("ascii"), form).replace(tzinfo=UTC)
    if tag == _UTC_TIME and found.year >= 2050:  # two digits mean 1950 … 2049, not what strptime takes them for
        found = found.replace(year=found.year - 100)
    return found


def _common_name(subject: bytes) -> str | None:
    for tag, names in _parts(subject) if subject else ():
        if tag != _SET:
            continue
        for _, pair in _parts(names):
            if pair.startswith(_COMMON_NAME):
                return _parts(pair)[1][1].decode("utf-8", "replace")
    return None

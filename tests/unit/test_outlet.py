"""Standard error that cannot be written: nobody waits, nothing raises, and what was lost is told."""

import contextlib
import errno
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes import PATIENCE_S
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base import outlet
from edge_agent.base.outlet import HELD_BYTES_MAX, Outlet

BROKEN = [errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF, errno.EDQUOT]


class Disk:
    """What is written to, by a script: bytes that it takes, or the number of an error; everything when it is over."""

    def __init__(self, script):
        self.script, self.held = list(script), b""

    def write(self, _descriptor, data):
        step = self.script.pop(0) if self.script else len(data)
        if step < 0:
            raise OSError(-step, "made up")
        self.held += bytes(data[:step])
        return min(step, len(data))

    @property
    def lines(self):
        return self.held.decode().splitlines()


def patient(out):
    out.drain(PATIENCE_S)


@given(st.lists(st.one_of(st.integers(0, 30), st.sampled_from(BROKEN).map(lambda number: -number)), max_size=30))
def test_every_line_is_whole_in_its_order_or_counted_as_lost(script):
    """However much of a line a disk takes before it takes no more; the rest of it is not glued to the next."""
    disk, lost = Disk(script), []
    out = Outlet(2, lost=lost.append, write=disk.write)
    lines = [f"event {number:03}" for number in range(20)]
    for line in lines:
        assert out.write(f"{line}\n") == len(line) + 1
        patient(out)
    disk.script.clear()
    out.write("the last\n")
    patient(out)
    out.close()
    whole = [line for line in disk.lines if line in lines]
    assert whole == sorted(whole)
    assert len(set(whole)) == len(whole)
    assert disk.lines[-1] == "the last"
    cut = len(lines) - len(whole)
    assert sum(lost) == cut or (sum(lost) > cut and disk.held)  # all of a line but its end counts as lost


def test_a_writer_does_not_wait_for_a_reader_and_what_it_had_no_room_for_is_told(monkeypatch):
    going, took = threading.Event(), []

    def write(_descriptor, data):
        going.wait(PATIENCE_S)
        took.append(bytes(data))
        return len(data)

    lost = []
    out = Outlet(2, lost=lost.append, write=write)
    line = "x" * 1023 + "\n"
    for _ in range(3 * HELD_BYTES_MAX // len(line)):
        out.write(line)
    going.set()
    patient(out)
    written = b"".join(took).count(b"\n")
    assert written <= HELD_BYTES_MAX // len(line)
    assert sum(lost) == 3 * HELD_BYTES_MAX // len(line) - written
    out.write("room again\n")
    patient(out)
    out.close()
    assert took[-1] == b"room again\n"


@contextlib.contextmanager
def pipe(*, reader):
    ours, theirs = os.pipe()
    if not reader:
        os.close(ours)
    try:
        yield theirs
    finally:
        os.close(theirs)
        if reader:
            os.close(ours)


@contextlib.contextmanager
def terminal(**_ignored):
    ours, theirs = pty.openpty()
    try:
        yield theirs
    finally:
        os.close(ours)
        os.close(theirs)


@contextlib.contextmanager
def full(**_ignored):
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


@pytest.mark.parametrize(
    "opened",
    [lambda: pipe(reader=True), lambda: pipe(reader=False), terminal, full],
    ids=["stalled", "gone", "tty", "full"],
)
def test_whatever_it_is_that_takes_nothing_writing_returns(opened):
    """A pipe that nobody empties, one without an end, a terminal that nobody looks at, a full disk."""
    with opened() as descriptor:
        out = Outlet(descriptor, lost=lambda _lines: None)
        for _ in range(1000):
            out.write("y" * 999 + "\n")
        out.drain(0.0)
    out.close()


def test_the_lines_of_a_process_go_through_it_until_it_ends(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr(outlet, "STDERR", writing)
    monkeypatch.setattr(outlet, "_occupy", lambda: None)
    before = sys.stderr
    with outlet.standard_error(lost=lambda _lines: None):
        sys.stderr.write("a warning\n")
        outlet.drain()
        assert os.read(reading, 100) == b"a warning\n"
        child = [sys.executable, "-c", "import sys; sys.stderr.write('a child\\n')"]
        subprocess.run(child, stderr=outlet.for_children(), check=True)
        assert os.read(reading, 100) == b"a child\n"
        sys.stderr.write("the last\n")
    assert sys.stderr is before
    assert os.read(reading, 100) == b"the last\n"
    os.close(reading)
    os.close(writing)


def test_a_child_that_prints_without_end_waits_for_nobody():
    """An engine whose library complained into a full pipe stood still, and was killed for its silence."""
    with pipe(reader=True) as descriptor:
        out = Outlet(descriptor, lost=lambda _lines: None)
        program = "import os, sys\nfor _ in range(4000):\n    os.write(2, b'x' * 1023 + b'\\n')\n"
        shown = f"try:\n    {program.replace(chr(10), chr(10) + '    ')}\nexcept BlockingIOError:\n    pass\n"
        subprocess.run([sys.executable, "-c", shown], stderr=out.fileno(), check=True, timeout=PATIENCE_S)
    out.close()

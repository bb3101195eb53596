"""Files that are the old one or the new one, whole, whatever ends the writing."""

import os

import pytest

from edge_agent.base import durable


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside(tmp_path):
    file = tmp_path / "pinned"
    durable.write(file, "phi\n")
    with pytest.raises(UnicodeEncodeError):
        durable.write(file, "vision\n\ud800")
    assert file.read_text() == "phi\n"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_who_may_read_it_is_said_and_not_the_umasks(tmp_path, mode):
    before = os.umask(0o077)
    try:
        durable.write(tmp_path / "file", "x", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode

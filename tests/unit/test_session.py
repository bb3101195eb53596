"""The part of a client id that nobody can guess: random, kept where only its owner reads, another one for each role."""

import re
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.client.client import EdgeClient
from edge_agent.mqtt import session
from edge_agent.mqtt.access import Access
from edge_agent.settings.load import ID_PATTERN

BITS = 128
LONGEST_ID = "a" * 63
CLIENT_ID_MOST = 100
"""The strictest broker at hand takes so many bytes (VerneMQ, max_client_id_size)."""


def mode(file):
    return stat.S_IMODE(file.stat().st_mode)


def test_it_has_128_bits_in_characters_that_every_broker_takes():
    made = {session.new() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch("[a-z2-7]{26}", each) for each in made)
    assert BITS <= 26 * 5
    assert re.match(ID_PATTERN, LONGEST_ID)
    assert len(f"{LONGEST_ID}.watch.{session.new()}") <= CLIENT_ID_MOST


def test_no_connection_has_an_id_that_can_be_guessed_unless_it_is_told_so():
    one, other = (Access("127.0.0.1", 1, client_id="line-3") for _ in range(2))
    assert one.identity != other.identity
    assert one.identity.startswith("line-3.")
    assert one.session not in repr(one)
    assert Access("127.0.0.1", 1, client_id="line-3", session="").identity == "line-3"


@given(st.text(max_size=9), st.text(max_size=9))
def test_no_role_follows_from_another(one, other):
    secret = session.new()
    assert (session.derived(secret, one) == session.derived(secret, other)) == (one == other)
    assert session.derived(secret, one) != secret


def test_it_is_kept_for_its_owner_alone(tmp_path):
    file = tmp_path / "session"
    made = session.kept(file)
    assert (mode(file), session.kept(file)) == (0o600, made)
    file.chmod(0o644)
    assert (session.kept(file), mode(file)) == (made, 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["session"]


@pytest.mark.parametrize("left", [b"", b"\0" * 26, b"edge-01", b"\xff" * 30, b"a" * 26 + b"\nb", b"a" * 500])
def test_what_a_power_cut_left_is_replaced(tmp_path, left):
    file = tmp_path / "session"
    file.write_bytes(left)
    made = session.kept(file)
    assert re.fullmatch("[a-z2-7]{26}", made)
    assert (session.kept(file), mode(file)) == (made, 0o600)


def test_a_program_keeps_its_session_in_a_file(tmp_path):
    access = Access("127.0.0.1", 1, client_id="line-3", session_expiry_s=3600)
    ids = [EdgeClient(access, session_file=tmp_path / "session")._link._access.identity for _ in range(2)]
    assert ids[0] == ids[1] != access.identity

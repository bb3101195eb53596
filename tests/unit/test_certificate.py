"""What the agent reads of its own certificate, beside what openssl reads."""

import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from authority import Authority
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.mqtt import certificate


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.mark.parametrize("days", [-1, 2, 365 * 40])
def test_name_and_times_are_those_that_openssl_reads(authority, days):
    """Years from 2050 on are written in another form."""
    file, _ = authority.issue("edge-01", file=f"days-{days}", days=days)
    found = certificate.read(file)
    command = ["openssl", "x509", "-in", str(file), "-noout", "-enddate", "-dateopt", "iso_8601"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert found.common_name == "edge-01"
    assert said.strip() == f"notAfter={found.ends:%Y-%m-%d %H:%M:%SZ}"
    assert abs(datetime.now(UTC) - found.begins) < timedelta(minutes=5)


def test_what_is_no_certificate_is_said(authority, tmp_path):
    for text in ("", "-----BEGIN CERTIFICATE-----\n", (authority.folder / "ca.key").read_text()):
        (tmp_path / "file").write_text(text)
        with pytest.raises(ValueError, match="holds no certificate"):
            certificate.read(tmp_path / "file")


@given(st.binary(max_size=300))
def test_bytes_are_a_certificate_or_a_value_error(der):
    with suppress(ValueError):
        certificate.parse(der)

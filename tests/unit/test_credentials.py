"""The files that shall convince a broker: read anew, named when they cannot be used, known when they were renewed."""

import ssl
import subprocess

import pytest
from authority import Authority

from edge_agent.mqtt.access import Access, CredentialError
from edge_agent.settings.broker import MqttSection


def access(**fields):
    return Access("127.0.0.1", 8883, client_id="edge-01", **fields)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    made = Authority(tmp_path_factory.mktemp("tls") / "ca")
    made.issue("edge-01")
    made.issue("edge-02")
    encrypt = ("ec", "-in", "edge-01.key", "-aes128", "-passout", "pass:x", "-out", "locked.key")
    subprocess.run(["openssl", *encrypt], cwd=made.folder, check=True, capture_output=True, timeout=60)
    return made


def test_the_password_comes_from_a_file_without_its_line_end(tmp_path):
    file = tmp_path / "pw"
    file.write_text("s3cret\n")
    reader = access(password_file=file)
    assert reader.secret() == "s3cret"
    file.write_text("renewed\n")
    assert reader.secret() == "renewed"
    file.write_text("\n")
    with pytest.raises(CredentialError, match=r"mqtt\.password_file: is empty"):
        reader.secret()
    file.write_bytes(b"x" * 70_000)
    with pytest.raises(CredentialError, match="longer than"):
        reader.secret()
    file.unlink()
    with pytest.raises(CredentialError, match="cannot be read: No such file"):
        reader.secret()


def test_a_credential_of_systemd_is_found_where_systemd_put_it(tmp_path, monkeypatch):
    (tmp_path / "mqtt-password").write_text("s3cret\n")
    section = MqttSection(password_file="$CREDENTIALS_DIRECTORY/mqtt-password")
    reader = Access.of(section, client_id="edge-01")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert reader.secret() == "s3cret"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(CredentialError, match="systemd sets it for a unit with LoadCredential="):
        reader.secret()


def test_certificate_and_key_are_taken_as_they_are_now(authority):
    fields = {"tls": True, "tls_ca_file": authority.ca}
    cert, key = (authority.folder / f"edge-01.{kind}" for kind in ("pem", "key"))
    assert access().context() is None
    context = access(**fields, tls_cert_file=cert, tls_key_file=key).context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tls_ca_file": "none.pem"}, "mqtt.tls_ca_file: .*none.pem cannot be read: No such file"),
        ({"tls_ca_file": "ca.key"}, "mqtt.tls_ca_file: .*ca.key holds no certificate"),
        ({"tls_cert_file": "none.pem"}, "mqtt.tls_cert_file: .*none.pem cannot be read: No such file"),
        ({"tls_cert_file": "edge-01.pem", "tls_key_file": "none.key"}, "mqtt.tls_key_file: .*none.key cannot be read"),
        ({"tls_cert_file": "edge-01.pem", "tls_key_file": "edge-02.key"}, "mqtt.tls_key_file: is not the key of"),
        ({"tls_cert_file": "edge-01.pem", "tls_key_file": "locked.key"}, "the key not encrypted"),
        ({"tls_cert_file": "ext", "tls_key_file": "edge-01.key"}, "must be in PEM form"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(authority, fields, sentence):
    """None of them is asked for on a terminal, where an encrypted key would wait for ever."""
    files = {key: authority.folder / name for key, name in fields.items()}
    with pytest.raises(CredentialError, match=sentence):
        access(tls=True, **files).check()


def test_a_renewed_file_is_known_by_its_identity(tmp_path):
    """Written over, replaced, or named by a link that points elsewhere now, as certificate agents do."""
    file, link = tmp_path / "one", tmp_path / "link"
    file.write_text("a")
    link.symlink_to(file)
    reader = access(password_file=link)
    first = reader.files()
    assert reader.files() == first
    (tmp_path / "two").write_text("a")
    link.unlink()
    assert reader.files() == (None,)
    link.symlink_to(tmp_path / "two")
    assert reader.files() not in (first, (None,))

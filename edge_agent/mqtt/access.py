"""How to reach and convince a broker: addresses, transport, and credentials that may be renewed while we run.

Files are read anew for every connection, so that a renewed certificate or password needs no restart.
"""

import os
import ssl
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, TypeAdapter

from edge_agent.mqtt import session
from edge_agent.settings.broker import MqttSection

RECEIVE_MAX = 256
"""Unacknowledged QoS 1 messages the broker may send us: what one commit takes in, and the bound on what we hold."""
PASSWORD_BYTES_MAX = 65_535
"""What fits into a CONNECT packet (MQTT 5, section 1.5.6)."""
CREDENTIALS = "$CREDENTIALS_DIRECTORY"
"""The folder in which systemd gives a unit its credentials; it may begin the name of any file here."""

Text = Annotated[str, Field(max_length=16_000)]
"""What MQTT has room for, whatever characters it is of (section 1.5.4)."""


def _nameable(file: Path) -> Path:
    try:
        named = os.fsencode(file)
    except UnicodeEncodeError:
        named = b"\0"
    if b"\0" in named:
        raise ValueError("no file can have this name")
    return file


File = Annotated[Path, AfterValidator(_nameable)]

Files = tuple[tuple[int, ...] | None, ...]
"""Which files were there, each with device, inode, size and time; None for one that was not."""


class CredentialError(OSError):
    """A file that shall convince the broker cannot be used; the message names its setting and says how to mend it.

    An OSError, because paho takes those for a connection that failed and tries again; any other would end its thread.
    """


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach and convince the broker. `session_expiry_s` 0 asks for a session that ends with the connection.

    client_id: who we are, for people who look at the broker; `session` follows it, see session.py. Another one each
    time, unless it is given: to find the broker's session again, keep it. Empty: the name is all, anybody can guess it.
    fallbacks: further addresses (host, port), tried in order when those before do not answer.
    password_file: its first line is the password, instead of `password`; read anew for every connection.
    websocket_path: where in `websockets` transport the broker answers.
    """

    host: Annotated[str, Field(min_length=1, max_length=253)]
    port: Annotated[int, Field(ge=1, le=65_535)]
    client_id: Text
    session: Text = field(default_factory=session.new, kw_only=True, repr=False)
    username: Text | None = None
    password: Text | None = None
    password_file: File | None = None
    fallbacks: tuple[tuple[str, int], ...] = ()
    transport: Literal["tcp", "websockets"] = "tcp"
    websocket_path: Annotated[str, Field(pattern=r"^/[!-~]{0,255}$")] = "/mqtt"
    tls: bool = False
    tls_ca_file: File | None = None
    tls_cert_file: File | None = None
    tls_key_file: File | None = None
    keepalive_s: Annotated[int, Field(ge=1, le=65_535)] = 20
    session_expiry_s: Annotated[int, Field(ge=0, le=0xFFFF_FFFF)] = 0
    clean_start: bool = False
    receive_max: Annotated[int, Field(ge=1, le=65_535)] = RECEIVE_MAX
    receive_bytes_max: Annotated[int, Field(ge=1024, le=2**28 - 1)] = 8 * 2**20

    @classmethod
    def of(cls, section: MqttSection, *, client_id: str, **changes: Any) -> Self:
        """Return what the settings say, with other values for some of the fields."""
        fields: dict[str, Any] = {
            "host": section.host,
            "port": section.port,
            "username": section.username,
            "password_file": section.password_file,
            "fallbacks": section.fallbacks,
            "transport": section.transport,
            "websocket_path": section.websocket_path,
            "tls": section.uses_tls,
            "tls_ca_file": section.tls_ca_file,
            "tls_cert_file": section.tls_cert_file,
            "tls_key_file": section.tls_key_file,
            "keepalive_s": section.keepalive_s,
            "session_expiry_s": section.session_expiry_s,
        }
        return cls(client_id=client_id, **(fields | changes))

    @property
    def identity(self) -> str:
        """The client id that the broker is told."""
        return f"{self.client_id}.{self.session}" if self.session else self.client_id

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Where to try, in order."""
        return ((self.host, self.port), *self.fallbacks)

    def checked(self) -> "Access":
        """Return it with every field of its type and within its bounds, for programs. Raises ValidationError."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return TypeAdapter(Access).validate_python(given)

    def check(self) -> None:
        """Read every file once. Raises CredentialError."""
        self.secret()
        self.context()

    def secret(self) -> str | None:
        """Return the password. Raises CredentialError when its file cannot be read or is empty."""
        if self.password_file is None:
            return self.password
        try:
            with located(self.password_file).open("rb") as file:
                password = file.read(PASSWORD_BYTES_MAX + 1).decode().strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable("password_file", self.password_file, error) from None
        if not password:
            raise CredentialError("mqtt.password_file: is empty; write the password on its first line")
        if len(password) > PASSWORD_BYTES_MAX:
            raise CredentialError(
                f"mqtt.password_file: is longer than {PASSWORD_BYTES_MAX} bytes; is it the right file?"
            )
        return password

    def context(self) -> ssl.SSLContext | None:
        """Return what TLS works with, None without TLS. Raises CredentialError when a file cannot be used."""
        if not self.tls:
            return None
        context = ssl.create_default_context() if self.tls_ca_file is None else _trusting(self.tls_ca_file)
        if self.tls_cert_file:
            _convince(context, self.tls_cert_file, self.tls_key_file)
        return context

    def files(self) -> Files:
        """Return which files would be read now; another value tells that one was renewed."""
        named = (self.password_file, self.tls_ca_file, self.tls_cert_file, self.tls_key_file)
        return tuple(_identity(file) for file in named if file is not None)


def located(file: Path) -> Path:
    """Return where a file lies whose name may begin with CREDENTIALS. Raises FileNotFoundError outside a unit."""
    if not file.parts or file.parts[0] != CREDENTIALS:
        return file
    folder = os.environ.get(CREDENTIALS.removeprefix("$"))
    if folder is None:
        raise FileNotFoundError(f"{CREDENTIALS} is not set; systemd sets it for a unit with LoadCredential=")
    return Path(folder, *file.parts[1:])


def _trusting(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=located(ca_file))
    except ssl.SSLError:
        raise CredentialError(f"mqtt.tls_ca_file: {ca_file} holds no certificate; it must be in PEM form") from None
    except OSError as error:
        raise _unreadable("tls_ca_file", ca_file, error) from None


def _convince(context: ssl.SSLContext, cert_file: Path, key_file: Path | None) -> None:
    for key, file in (("tls_cert_file", cert_file), ("tls_key_file", key_file)):
        try:
            if file is not None:
                located(file).open("rb").close()  # the next call does not tell which of them it cannot read
        except OSError as error:
            raise _unreadable(key, file, error) from None
    try:
        # Without a password OpenSSL would ask for one on the terminal, and wait.
        context.load_cert_chain(located(cert_file), key_file and located(key_file), password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CredentialError(
                "mqtt.tls_key_file: is not the key of the certificate in mqtt.tls_cert_file; renew both together"
            ) from None
        raise CredentialError(
            "mqtt.tls_cert_file: certificate and key cannot be used; both must be in PEM form, the key not encrypted"
        ) from None


def _identity(file: Path) -> tuple[int, ...] | None:
    try:
        found = located(file).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(key: str, file: Path | None, error: Exception) -> CredentialError:
    reason = getattr(error, "strerror", None) or (str(error) if isinstance(error, OSError) else type(error).__name__)
    return CredentialError(f"mqtt.{key}: {file} cannot be read: {reason}")

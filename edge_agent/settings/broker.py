"""`[mqtt]`: the broker, as it stands in the settings; light, for what programs use knows of it too."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

DAY_S = 86_400

ROOT_PATTERN = r"^[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64})?$"
Root = Annotated[str, StringConstraints(pattern=ROOT_PATTERN)]
"""The first one or two levels of every topic; more would pass the 7 slashes hosted brokers allow."""

ADDRESS = re.compile(r"^(?P<host>\[(?P<bare>[0-9A-Fa-f:.]+)\]|[A-Za-z0-9._-]+)(:(?P<port>[1-9][0-9]{0,4}))?$")
Address = Annotated[str, StringConstraints(pattern=ADDRESS.pattern)]
"""`host`, `host:port`, or `[IPv6 address]:port`."""


class Section(BaseModel):
    """A table of the settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MqttSection(Section):
    """The broker."""

    host: str = Field("127.0.0.1", min_length=1, description="name or address of the broker")
    port: int = Field(1883, ge=1, le=65535, description="its port; 8883 is usual with TLS, 443 with WebSockets")
    fallback_hosts: tuple[Address, ...] = Field(
        (),
        max_length=8,
        description="further addresses, `host` or `host:port`, tried in order when those before do not answer",
    )
    transport: Literal["tcp", "websockets"] = Field("tcp", description="what MQTT travels in: tcp or websockets")
    websocket_path: str = Field("/mqtt", pattern=r"^/[!-~]{0,255}$", description="where the broker takes WebSockets")
    username: str | None = Field(None, description="MQTT user name; with an ACL it must equal the agent's id")
    password_file: Path | None = Field(
        None,
        description="file with the password, on one line; read anew for every connection, as are the tls files",
    )
    root: Root = Field("edge/v1", description="first one or two levels of every topic")
    tls: bool = Field(False, description="speak TLS; implied by the other tls settings")
    tls_ca_file: Path | None = Field(
        None, description="certificates that may sign the broker's; the system's when unset"
    )
    tls_cert_file: Path | None = Field(None, description="our certificate, for brokers that ask for one")
    tls_key_file: Path | None = Field(None, description="the key of our certificate")
    keepalive_s: int = Field(20, ge=5, le=3600, description="silence after which the broker counts us as gone")
    session_expiry_s: int = Field(
        7 * DAY_S,
        ge=DAY_S,
        le=0xFFFFFFFE,
        description="how long the broker keeps jobs for us while we are away",
    )

    @property
    def fallbacks(self) -> tuple[tuple[str, int], ...]:
        """The further addresses as host and port, `port` where none is given."""
        found = [match for each in self.fallback_hosts if (match := ADDRESS.match(each))]
        return tuple((match["bare"] or match["host"], int(match["port"] or self.port)) for match in found)

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or any((self.tls_ca_file, self.tls_cert_file, self.tls_key_file))

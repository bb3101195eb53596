"""The options of every command that talks to a broker, and what they amount to."""

import functools
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.text import Text

from edge_agent.base.errors import SettingsError
from edge_agent.mqtt import certificate
from edge_agent.mqtt.access import Access, CredentialError, located
from edge_agent.protocol.messages import faults
from edge_agent.protocol.topics import CLIENT, NAME_RULE
from edge_agent.settings import load as settings
from edge_agent.settings.broker import MqttSection

PANEL = "Broker"

Config = Annotated[
    Path | None,
    typer.Option(
        envvar=settings.ENV_CONFIG,
        help="Settings file (TOML), for the broker too.",
        rich_help_panel=PANEL,
        dir_okay=False,
    ),
]
Host = Annotated[str | None, typer.Option(help="Name or address of the broker.", rich_help_panel=PANEL)]
Port = Annotated[int | None, typer.Option(help="Its port.", rich_help_panel=PANEL)]
FallbackHost = Annotated[
    list[str] | None,
    typer.Option(help="Another address, as host:port, where the first does not answer.", rich_help_panel=PANEL),
]
Transport = Annotated[str | None, typer.Option(help="tcp or websockets.", rich_help_panel=PANEL)]
WebsocketPath = Annotated[str | None, typer.Option(help="Where the broker takes WebSockets.", rich_help_panel=PANEL)]
Username = Annotated[str | None, typer.Option(help="MQTT user name.", rich_help_panel=PANEL)]
PasswordFile = Annotated[Path | None, typer.Option(help="File with the password.", rich_help_panel=PANEL)]
Root = Annotated[str | None, typer.Option(help="First levels of every topic.", rich_help_panel=PANEL)]
Tls = Annotated[bool, typer.Option("--tls", help="Speak TLS.", rich_help_panel=PANEL)]
TlsCaFile = Annotated[Path | None, typer.Option(help="Certificates that may sign the broker's.", rich_help_panel=PANEL)]
TlsCertFile = Annotated[Path | None, typer.Option(help="Our certificate.", rich_help_panel=PANEL)]
TlsKeyFile = Annotated[Path | None, typer.Option(help="Its key.", rich_help_panel=PANEL)]


OPTIONS = {
    "config": Config,
    "host": Host,
    "port": Port,
    "fallback_host": FallbackHost,
    "transport": Transport,
    "websocket_path": WebsocketPath,
    "username": Username,
    "password_file": PasswordFile,
    "root": Root,
    "tls": Tls,
    "tls_ca_file": TlsCaFile,
    "tls_cert_file": TlsCertFile,
    "tls_key_file": TlsKeyFile,
}


def takes_broker(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a broker in place of its parameter `section`, which then is what they amount to.

    One that has a parameter `config` is told the settings file too.
    """
    signature = inspect.signature(command)
    own = [parameter for name, parameter in signature.parameters.items() if name not in {"section", "config"}]
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False if name == "tls" else None, annotation=kind
        )
        for name, kind in OPTIONS.items()
    ]

    @functools.wraps(command)
    def with_options(*given: Any, **named: Any) -> None:
        broker = {name: named.pop(name) for name in OPTIONS}
        if "config" in signature.parameters:
            named["config"] = broker["config"]
        command(*given, section=broker_section(broker.pop("config"), **broker), **named)

    with_options.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]  # typer's way to ask
    return with_options


def broker_section(config: Path | None, **given: Any) -> MqttSection:
    """Return the broker's settings: from the file and the environment, what was given on the command line first.

    Ends the command with a sentence when they cannot be used.
    """
    try:
        section = settings.load(config).mqtt
        given["fallback_hosts"] = given.pop("fallback_host", None)
        chosen = {name: value for name, value in given.items() if value not in (None, False)}
        return MqttSection.model_validate(section.model_dump() | chosen)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None
    except ValidationError as error:
        raise typer.BadParameter(faults(error)) from None


def own_name(section: MqttSection, given: str | None) -> str:
    """Return the requester's name that was given, or `requester`'s. Ends the command when that can be nobody's."""
    for name, hint in ((given, "--name"), (section.username if given is None else None, "--username")):
        if name is not None and not CLIENT.match(name):
            way = "" if given else "; --name gives another, which the broker must let this user have"
            raise typer.BadParameter(f"{name!r} is no requester's name: {NAME_RULE}{way}", param_hint=hint)
    return given or requester(section)


def requester(section: MqttSection) -> str:
    """Return the requester's name in topics.

    The broker's user name, else the common name of our certificate, else one made from the login name.
    """
    for name in (section.username, _common_name(section)):
        if name is not None and CLIENT.match(name):
            return name
    login = re.sub(r"[^a-z0-9_-]", "", os.environ.get("USER", "").lower()).lstrip("-_")
    return f"cli-{login or 'user'}"[:63]


def _common_name(section: MqttSection) -> str | None:
    if section.tls_cert_file is None:
        return None
    try:
        return certificate.read(located(section.tls_cert_file)).common_name
    except (OSError, ValueError):
        return None  # said in words when the connection is made


def unreachable(section: MqttSection, trouble: str | None) -> Text:
    """Return the sentence for a broker that is not there; `trouble` is why, where that is known."""
    return Text(f"no broker at {section.host}:{section.port}: {trouble or 'nothing answers there'}", style="red")


def access(section: MqttSection, name: str) -> Access:
    """Return how a command reaches the broker: a session of its own, so that two commands never collide."""
    found = Access.of(section, client_id=name, session_expiry_s=0, clean_start=True)
    try:
        found.check()
    except CredentialError as error:
        raise typer.BadParameter(str(error)) from None
    return found

"""`edge-agent acl`: what a mosquitto must be told so that nobody can speak as another."""

import os
import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edge_agent.protocol.acl import AgentRole, Fleet, render
from edge_agent.protocol.filters import intersect
from edge_agent.protocol.topics import CLIENT
from edge_agent.settings.broker import MqttSection

PANEL = "Users"
RESERVED = {"ca": "the authority, whose key signs everybody's certificate", "broker": "the broker"}
"""Names whose `NAME.key` and `NAME.pem` are no user's."""
MADE = frozenset({"passwords", "mosquitto-edge.conf", "ca.srl", "broker.ext"})
"""What the script makes, beside a password or a certificate, its request and its key for each name."""
SUFFIXES = (".password", ".pem", ".key", ".csr")
FILTER_BYTES_MAX = 1024
"""mosquitto reads lines of any length; a filter of an MQTT client is at most this long on hosted brokers."""


class Proof(StrEnum):
    """How users prove who they are."""

    PASSWORDS = "passwords"
    CERTIFICATES = "certificates"


def acl(
    file: Annotated[Path, typer.Argument(help="The ACL file to write.", dir_okay=False)],
    *,
    agent: Annotated[
        list[str] | None,
        typer.Option(help="An agent, with its pools as NAME:POOL,POOL.", rich_help_panel=PANEL),
    ] = None,
    requester: Annotated[list[str] | None, typer.Option(help="Who may send jobs.", rich_help_panel=PANEL)] = None,
    monitor: Annotated[
        list[str] | None, typer.Option(help="Who may see how agents are, never a text.", rich_help_panel=PANEL)
    ] = None,
    admin: Annotated[
        list[str] | None, typer.Option(help="Who may load and remove models.", rich_help_panel=PANEL)
    ] = None,
    watch_read: Annotated[
        list[str] | None,
        typer.Option(help="What an agent's watches read, as AGENT=FILTER.", rich_help_panel="Watches"),
    ] = None,
    watch_write: Annotated[
        list[str] | None,
        typer.Option(help="Where an agent's watches answer, as AGENT=TOPIC.", rich_help_panel="Watches"),
    ] = None,
    proof: Annotated[Proof, typer.Option(help="How users prove who they are.")] = Proof.PASSWORDS,
    broker: Annotated[str, typer.Option(help="Name of the broker's machine, for its certificate.")] = "broker.local",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the broker shall listen.")] = 8883,
    root: Annotated[str, typer.Option(help="First levels of every topic.")] = "edge/v1",
) -> None:
    """Write mosquitto's ACL for named users, and print the commands and settings that go with it.

    What is printed is a shell script: read it, then run it where the file is. Give every user in one call; options may
    be repeated.
    """
    try:
        root = MqttSection(root=root).root
    except ValueError:
        raise typer.BadParameter("one or two levels of A-Z a-z 0-9 _ . -", param_hint="--root") from None
    if not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", broker):
        raise typer.BadParameter("a name or an address", param_hint="--broker")
    fleet = Fleet(
        root=root,
        agents=_agents(
            agent or [],
            reads=_watches(watch_read, root, "--watch-read"),
            writes=_watches(watch_write, root, "--watch-write"),
        ),
        requesters=_names(requester, "--requester"),
        monitors=_names(monitor, "--monitor"),
        admins=_names(admin, "--admin"),
    )
    _keep_apart(fleet, file.name)
    if not fleet.users():
        raise typer.BadParameter("name somebody: --agent, --requester, --monitor, --admin")
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640), "w", encoding="utf-8") as opened:
            opened.write(render(fleet))
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be written: {error.strerror}") from None
    typer.echo(script(fleet, file.resolve(), proof=proof, broker=broker, port=port), nl=False)


def _names(given: list[str] | None, option: str) -> tuple[str, ...]:
    for name in given or ():
        if not CLIENT.match(name):
            raise typer.BadParameter(f"{name!r}: a-z 0-9 _ -, a letter or digit first", param_hint=option)
    return tuple(given or ())


def _keep_apart(fleet: Fleet, file: str) -> None:
    """Refuse names whose files would be, or be taken for, those of the broker and the authority."""
    for name in sorted(RESERVED.keys() & set(fleet.users())):
        raise typer.BadParameter(f"{name!r}: its files would be those of {RESERVED[name]}; choose another name")
    theirs = {f"{name}{suffix}" for name in (*RESERVED, *fleet.users()) for suffix in SUFFIXES}
    if file in MADE | theirs:
        raise typer.BadParameter(f"{file!r} is another file here, of a secret or a user; choose a name as edge.acl")


def _agents(given: list[str], *, reads: list[tuple[str, str]], writes: list[tuple[str, str]]) -> tuple[AgentRole, ...]:
    found = []
    for each in given:
        name, _, pools = each.partition(":")
        _names([name], "--agent")
        found.append(
            AgentRole(
                name,
                pools=_names([pool for pool in pools.split(",") if pool], "--agent"),
                reads=tuple(topic for agent, topic in reads if agent == name),
                writes=tuple(topic for agent, topic in writes if agent == name),
            )
        )
    if strange := {agent for agent, _ in (*reads, *writes)} - {role.name for role in found}:
        raise typer.BadParameter(f"{min(strange)!r} watches and is no --agent here")
    return tuple(found)


def _watches(given: list[str] | None, root: str, option: str) -> list[tuple[str, str]]:
    """Return agent and topic of each; refuse what is no filter, or would reach what the protocol keeps apart."""
    found = []
    for each in given or ():
        agent, _, topic = each.partition("=")
        _names([agent], option)
        if (
            not topic.isprintable()
            or topic != topic.strip()
            or not re.fullmatch(r"(?:(?:\+|[^+#/]*)/)*(?:\+|#|[^+#/]+)", topic)
            or len(topic.encode()) > FILTER_BYTES_MAX
        ):
            raise typer.BadParameter(f"{each!r}: write AGENT=FILTER", param_hint=option)
        if intersect(topic, f"{root}/#"):
            raise typer.BadParameter(
                f"{each!r} reaches below {root}, where it would hear or say what is others'", param_hint=option
            )
        found.append((agent, topic))
    return found


_PASSWORDS = """\
# A random password for each user who has none. Give each the file with its own, as [mqtt] password_file with
# username = its name. Who is not named here is let in no more.
umask 077
for name in {users}; do
  [ -e "$name.password" ] || openssl rand -hex 24 > "$name.password"
  echo "$name:$(cat "$name.password")"
done > passwords
mosquitto_passwd -U passwords
"""

_BROKER_CERTIFICATE = """\
# An authority of your own, and the broker's certificate. Keep ca.key away from the broker; give ca.pem to everybody, as
# [mqtt] tls_ca_file.
# What is there already stays: remove broker.pem to have it renewed.
umask 077
if ! [ -e ca.pem ]; then
  openssl req -x509 {curve} -keyout ca.key -out ca.pem -subj "/CN=edge-agent authority" -days 3650
fi
if ! [ -e broker.pem ]; then
  openssl req {curve} -keyout broker.key -out broker.csr -subj "/CN={broker}"
  echo "subjectAltName={alternative}" > broker.ext
  openssl x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -CAcreateserial \\
    -out broker.pem -extfile broker.ext -days 825
fi
"""

_USER_CERTIFICATES = """\
# A certificate for each user who has none; its common name is the user's name. Give each its own two files, as [mqtt]
# tls_cert_file and tls_key_file. Remove one here to have it renewed.
for name in {users}; do
  [ -e "$name.pem" ] && continue
  openssl req {curve} -keyout "$name.key" -out "$name.csr" -subj "/CN=$name"
  openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -out "$name.pem" -days 365
done
"""

_CONFIG = """\
# mosquitto must be able to read these files, and nobody else.
if [ "$(id -u)" = 0 ] && id mosquitto > /dev/null 2>&1; then
  chgrp mosquitto {readable}
fi
chmod 640 {readable}

# Then include these lines in mosquitto.conf, and after every change of users or rights: systemctl reload mosquitto
cat > mosquitto-edge.conf <<'END'
{lines}
END
"""

_CURVE = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"


def script(fleet: Fleet, file: Path, *, proof: Proof, broker: str, port: int) -> str:
    """Return the shell script that makes what the ACL in `file` goes with, in the folder of that file."""
    users = " ".join(fleet.users())
    alternative = f"IP:{broker}" if re.fullmatch(r"[0-9.]+|.*:.*", broker) else f"DNS:{broker}"
    folder = file.parent
    lines = [
        f"listener {port}",
        f"certfile {folder / 'broker.pem'}",
        f"keyfile {folder / 'broker.key'}",
        "allow_anonymous false",
        f"acl_file {file}",
    ]
    readable = [file.name, "broker.pem", "broker.key"]
    if proof is Proof.PASSWORDS:
        lines.append(f"password_file {folder / 'passwords'}")
        users_part = _PASSWORDS.format(users=users)
        readable.append("passwords")
    else:
        lines += [f"cafile {folder / 'ca.pem'}", "require_certificate true", "use_identity_as_username true"]
        users_part = _USER_CERTIFICATES.format(users=users, curve=_CURVE)
        readable.append("ca.pem")
    parts = [
        f"set -eu\ncd {shlex.quote(str(folder))}\n",
        _BROKER_CERTIFICATE.format(curve=_CURVE, broker=broker, alternative=alternative),
        users_part,
        _CONFIG.format(readable=" ".join(map(shlex.quote, readable)), lines="\n".join(lines)),
    ]
    return "\n".join(parts)

"""What speaks at an address that does not answer our greeting: TLS, or an older MQTT."""

import socket
import ssl

from edge_agent.mqtt.access import Access
from edge_agent.mqtt.trouble import Trouble

ANSWER_S = 5.0
CONNECT_3_1_1 = bytes.fromhex("100c00044d5154540402000a0000")
"""A whole CONNECT of MQTT 3.1.1 (sections 3.1 and 4.2 of its standard): clean session, no name, keepalive 10 s."""
CONNACK = 0x20

TLS = Trouble("what answers there speaks TLS", "set mqtt.tls = true, and mqtt.tls_ca_file")
OLD = Trouble("the broker speaks MQTT 3.1.1 and answers nothing newer", "use a broker that speaks MQTT 5")


def ask(access: Access, address: tuple[str, int]) -> Trouble | None:
    """Return what is found out; None when it is neither, or cannot be found out, as through WebSockets."""
    if access.transport != "tcp":
        return None
    if not access.tls and _speaks_tls(address):
        return TLS
    return OLD if _speaks_old_mqtt(access, address) else None


def _speaks_tls(address: tuple[str, int]) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said to it, nothing believed
    try:
        with socket.create_connection(address, ANSWER_S) as sock, context.wrap_socket(sock):
            return True
    except ssl.SSLError as error:
        return (error.reason or "").startswith(("SSLV3_ALERT", "TLSV1_ALERT", "TLSV13_ALERT"))
    except OSError:
        return False


def _speaks_old_mqtt(access: Access, address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, ANSWER_S) as sock:
            context = access.context()
            speaking = sock if context is None else context.wrap_socket(sock, server_hostname=address[0])
            with speaking:
                speaking.sendall(CONNECT_3_1_1)
                return speaking.recv(1) == bytes([CONNACK])
    except OSError:
        return False

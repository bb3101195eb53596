"""Why there is no connection, in words for people: what happened and what to do next. PURE."""

import socket
import ssl
from dataclasses import dataclass

from edge_agent.mqtt.access import Access, CredentialError

# X509_V_ERR_…, openssl/x509_vfy.h: what SSLCertVerificationError.verify_code holds.
NOT_YET_VALID = 9
EXPIRED = 10
STRANGE_CA = frozenset({18, 19, 20, 21})
WRONG_NAME = frozenset({62, 64})


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no connection, and what mends it."""

    reason: str
    next: str

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.reason}: {self.next}"


HUNG_UP = "what answers there hung up before it welcomed us"
MUTE = "what answers there says nothing to our greeting"
LOST = Trouble("the connection was lost", "none needed, it is tried again")
NO_QOS_1 = Trouble("the broker takes messages of QoS 0 only, which may get lost", "use a broker that takes QoS 1")
_UNANSWERED = Trouble(
    "the broker was there and confirmed none of our messages", "see the broker's log and disk; they are sent again"
)

_MEND_CA = "name the authority that signed it in mqtt.tls_ca_file"
_MEND_OURS = "renew mqtt.tls_cert_file and mqtt.tls_key_file; no restart is needed"

_ALERTS = {
    "CERTIFICATE_EXPIRED": Trouble("the broker says that our certificate has expired", _MEND_OURS),
    "CERTIFICATE_REVOKED": Trouble("the broker says that our certificate is revoked", _MEND_OURS),
    "UNKNOWN_CA": Trouble(
        "the broker does not know who signed our certificate",
        "let the broker trust that authority (cafile in mosquitto), or have the certificate signed by another",
    ),
    "CERTIFICATE_REQUIRED": Trouble(
        "the broker wants a certificate of ours", "set mqtt.tls_cert_file and mqtt.tls_key_file"
    ),
    "CERTIFICATE": Trouble("the broker refuses our certificate", _MEND_OURS),
    "HANDSHAKE_FAILURE": Trouble(
        "the broker breaks off the TLS handshake",
        "see the broker's log; it may want a certificate (mqtt.tls_cert_file)",
    ),
    "WRONG_VERSION_NUMBER": Trouble(
        "what answers there speaks no TLS", "mend mqtt.port (8883 is usual with TLS), or set mqtt.tls = false"
    ),
}
"""What a peer's alert, or OpenSSL's own word, ends in; longer ones first."""

_NO_TLS = Trouble(
    "what answers there broke off the TLS handshake",
    "see its log; if it speaks no TLS, mend mqtt.port (8883 is usual with TLS) or set mqtt.tls = false",
)
_NO_WEBSOCKET = Trouble(
    "what answers there speaks no WebSocket at mqtt.websocket_path",
    "mend mqtt.port and mqtt.websocket_path, or set mqtt.transport = 'tcp'",
)


def of_error(error: BaseException | None, access: Access) -> Trouble:
    """Return why an address could not be reached."""
    match error:
        case CredentialError():
            reason, _, advice = str(error).partition("; ")
            found = Trouble(reason, advice or "mend the file; no restart is needed")
        case ssl.SSLCertVerificationError():
            found = _of_certificate(error)
        case ssl.SSLEOFError() | ConnectionResetError() if access.tls:
            found = _NO_TLS
        case ssl.SSLError():
            found = _of_tls(error)
        case ConnectionRefusedError():
            found = Trouble("nothing listens there", "start the broker, or mend mqtt.host and mqtt.port")
        case TimeoutError():
            found = Trouble("nothing answers there", "mend mqtt.host and mqtt.port, or the firewall between")
        case socket.gaierror():
            found = Trouble("the broker's name is not known here", "mend mqtt.host, or how this machine finds names")
        case ConnectionError() if access.transport == "websockets":
            found = _NO_WEBSOCKET
        case _:
            reason = getattr(error, "strerror", None) or type(error).__name__
            found = Trouble(f"the connection failed ({reason})", "mend the network between")
    return found


def of_refusal(reason: str) -> Trouble:
    """Return why the broker did not welcome us, from the words of its reason code (MQTT 5, section 3.2.2.2)."""
    mends = {
        "Bad user name or password": "mend mqtt.username and mqtt.password_file, or the broker's users",
        "Not authorized": "mend mqtt.username and mqtt.password_file, or the broker's users and ACL",
        "Client identifier not valid": "let the broker take client ids of up to 96 characters, of a-z 0-9 _ - .",
        "Unsupported protocol version": "use a broker that speaks MQTT 5",
        "QoS not supported": NO_QOS_1.next,
        "Retain not supported": "none needed, it is tried again without; but then who comes later does not see us",
        "Banned": "see the broker's list of who is banned",
        "Use another server": "mend mqtt.host",
        "Server moved": "mend mqtt.host",
        "Packet too large": "let the broker take larger packets (max_packet_size in mosquitto)",
        "Quota exceeded": "raise the broker's limits; it is tried again",
        "Connection rate exceeded": LOST.next,
        "Server busy": LOST.next,
        "Server unavailable": LOST.next,
    }
    return Trouble(f"the broker refuses us ({reason})", mends.get(reason, "see the broker's log"))


def of_end(
    access: Access, *, unanswered: bool, goodbye: str | None, fault: BaseException | None, welcomed: bool, mute: bool
) -> Trouble:
    """Return why a connection ended; `mute` when we did not wait any longer for an answer.

    Either we hung up on a broker that left us `unanswered`; or the broker said why, in the words of its `goodbye`'s
    reason code (MQTT 5, section 3.14.2.1) or by a TLS alert (`fault`); or it said nothing, having `welcomed` us or not.
    """
    if unanswered:
        return _UNANSWERED
    if goodbye is not None:
        return Trouble(f"the broker ended the connection ({goodbye})", "see the broker's log; it is tried again")
    if fault is not None:
        return of_error(fault, access)
    if welcomed:
        return LOST
    return unwelcomed(access) if mute else Trouble(HUNG_UP, _guess(access))


def unwelcomed(access: Access) -> Trouble:
    """Return why nothing comes back over a connection that is there."""
    return Trouble(MUTE, _guess(access))


def _guess(access: Access) -> str:
    tls = "" if access.tls else "it may want TLS there (mqtt.tls = true), or "
    return f"{tls}it may speak MQTT 3.1.1 only (a broker of MQTT 5 is needed); see its log, edge-agent doctor finds out"


def _of_certificate(error: ssl.SSLCertVerificationError) -> Trouble:
    code, words = error.verify_code, error.verify_message
    if code == EXPIRED:
        return Trouble("the broker's certificate has expired", "renew it at the broker; is this machine's clock right?")
    if code == NOT_YET_VALID:
        return Trouble("the broker's certificate is not valid yet", "set this machine's clock")
    if code in STRANGE_CA:
        return Trouble("nobody we trust has signed the broker's certificate", _MEND_CA)
    if code in WRONG_NAME:
        return Trouble(
            "the broker's certificate is for another name",
            "set mqtt.host to a name that stands in it (subjectAltName), or have one made for this name",
        )
    return Trouble(f"the broker's certificate cannot be trusted ({words})", _MEND_CA)


def _of_tls(error: ssl.SSLError) -> Trouble:
    reason = error.reason or ""
    for ending, trouble in _ALERTS.items():
        if reason.endswith(ending):
            return trouble
    return Trouble(f"TLS failed ({reason or type(error).__name__})", "see the broker's log")

"""The sockets under paho: TLS whose files may change, what a peer says as it hangs up, handshakes that only fail."""

import socket
import ssl
from collections.abc import Callable, Collection
from typing import Any

import paho.mqtt.client
from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MessageState, MQTTErrorCode
from paho.mqtt.exception import MalformedPacket

from edge_agent.base.heartbeat import Heartbeat
from edge_agent.mqtt.access import Access

CONNECT_S = 60.0
"""What a connection may take to come about: a name is looked for, addresses are tried, TLS is agreed on."""
UNANSWERED_MAX = 20
"""Messages of QoS 1 that are on their way to the broker at once; fewer where it takes fewer."""
RECEIVE_BYTES = 1_048_576
"""What is read from the broker at once. Paho would read all of a packet that the kernel has, megabytes on a busy
machine, and hold it beside the packet that it was added to until this one is dealt with."""

_WebSocket: Any = paho.mqtt.client._WebsocketWrapper  # noqa: SLF001 - mended here, paho has no other place for it
_send, _frame = _WebSocket._send_impl, _WebSocket._create_frame  # noqa: SLF001 - see above


def send_whole(websocket: Any, data: bytes) -> int:
    """Send a packet as one frame. Raises BlockingIOError while a part of it waits.

    paho's own returns 0 then, for which its caller drops the packet and every later one is out of step.
    """
    sent: int = _send(websocket, data)
    if sent == 0 and data:
        raise BlockingIOError
    return sent


def masked_frame(websocket: Any, opcode: int, data: bytearray, _mask: int = 1) -> bytearray:
    """Return a frame as a client must send it; paho leaves answers to pings unmasked, for which servers hang up."""
    frame: bytearray = _frame(websocket, opcode, bytearray(data), 1)
    return frame


_WebSocket._send_impl, _WebSocket._create_frame = send_whole, masked_frame  # noqa: SLF001 - see above


class Paho(Client):
    """Paho, with TLS made from the files as they are at every connection.

    Its private methods are overridden: it offers no other way to another certificate, would end its thread over a
    handshake that fails in a way it does not expect, or leave its socket open, takes large messages for larger, sends
    more at once than the broker takes, and on a new connection newer messages before older ones.
    """

    def __init__(self, access: Access, *, beat: Heartbeat) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=access.identity,
            protocol=MQTTv5,
            transport=access.transport,
            manual_ack=True,
        )
        self._access = access
        self._beat = beat
        self._opened: socket.socket | None = None
        self._payload = bytearray()
        self.max_queued_messages_set(0)
        self.ws_set_options(path=access.websocket_path)
        if access.tls:
            self.tls_set_context(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # never used: that it is set is what counts

    @property
    def unanswered(self) -> Collection[int]:
        """The ids of the QoS 1 messages that the broker has not answered; `on_publish` still finds its own here."""
        return self._out_messages.keys()

    @property
    def taking_in(self) -> bool:
        """Whether a packet is on its way in, or is being dealt with: what was sent behind it cannot be here yet."""
        return bool(self._in_packet["have_remaining"])

    def withdraw(self, unwanted: Callable[[MQTTMessage], bool]) -> list[int]:
        """Take back those of the unanswered messages that the broker shall not get; return their ids."""
        with self._out_message_mutex:
            mids = [mid for mid, message in self._out_messages.items() if unwanted(message)]
            for mid in mids:
                del self._out_messages[mid]
        return mids

    def take_turns(self, receive_max: int | None, *, retain: bool) -> None:
        """Have no more messages on their way at once than this broker takes. For `on_connect`, each time.

        Without `retain` it takes none that it shall retain.

        Paho knows no such bound (MQTT 5, section 4.9) and would send again all that was not answered; a broker ends the
        connection over one too many, and would do so again on every later one.
        """
        with self._out_message_mutex:
            self._max_inflight_messages = min(UNANSWERED_MAX, receive_max or UNANSWERED_MAX)
            room = self._max_inflight_messages - self._inflight_messages
            for message in self._out_messages.values():
                message.retain = message.retain and retain
            again = [each for each in self._out_messages.values() if each.state is MessageState.MQTT_MS_PUBLISH]
            for message in again[max(0, room) :]:
                message.state = MessageState.MQTT_MS_QUEUED

    def _loop(self, timeout: float = 1.0) -> MQTTErrorCode:
        self._beat(timeout)
        return super()._loop(timeout)

    def _reconnect_wait(self) -> None:
        self._beat(self._reconnect_max_delay)
        super()._reconnect_wait()

    def _handle_connack(self) -> MQTTErrorCode:
        """Take in the broker's welcome, and send again what it has not answered; whoever publishes waits meanwhile.

        Paho sends it again after `on_connect`, for which others wait who have newer things to say on the same topics.
        """
        with self._out_message_mutex:
            return super()._handle_connack()

    def _send_publish(self, *message: Any, **more: Any) -> MQTTErrorCode:
        """Send a message. Before the broker has welcomed us it waits its turn behind older ones: see above."""
        if not self.is_connected():
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        return super()._send_publish(*message, **more)

    def _mid_generate(self) -> int:
        """Return an id that no unanswered message has.

        Paho's own come round after 65,535 messages of any QoS. One of QoS 0 that had the id of a result which the
        broker is yet to answer, as one that throttles may for hours, would pass for its answer as it leaves.
        """
        while (mid := super()._mid_generate()) in self.unanswered:
            pass
        return mid

    def _sock_recv(self, bufsize: int) -> bytes:
        return super()._sock_recv(min(bufsize, RECEIVE_BYTES))

    def _handle_publish(self) -> MQTTErrorCode:
        """Take a message in without copying its payload, which stays in the buffer that it was received in.

        Paho's own copies all of it five times, for a moment three at once.
        """
        received = self._in_packet["packet"]
        begin = payload_begin(received, qos=(self._in_packet["command"] & 0x06) >> 1)
        self._in_packet["packet"] = received[:begin]
        del received[:begin]
        self._payload = received
        return super()._handle_publish()

    def _handle_on_message(self, message: MQTTMessage) -> None:
        message.payload, self._payload = self._payload, bytearray()
        super()._handle_on_message(message)

    def _create_socket(self) -> Any:
        """Open the connection. Raises OSError only.

        A name with an empty label is a UnicodeError to Python, a WebSocket answer that is none an IndexError to paho.
        """
        self._beat(CONNECT_S)
        try:
            return super()._create_socket()
        except (OSError, ValueError, LookupError) as error:
            if self._opened is not None:
                self._opened.close()
            if isinstance(error, OSError):
                raise
            raise ConnectionError(f"what answers makes no sense ({type(error).__name__})") from error

    def _create_socket_connection(self) -> socket.socket:
        self._opened = None
        self._opened = super()._create_socket_connection()
        return self._opened

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        context = self._access.context()
        assert context is not None  # noqa: S101 - without TLS nothing is wrapped
        context.sslsocket_class = HearingSocket
        wrapped = context.wrap_socket(tcp_sock, server_hostname=self.host)
        self._opened = wrapped
        return wrapped


class HearingSocket(ssl.SSLSocket):
    """A TLS socket that remembers why the peer broke off; paho writes it to its own log and forgets it."""

    fault: ssl.SSLError | None = None

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Receive, as the socket does."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.fault = error
            raise


def payload_begin(packet: bytearray, *, qos: int) -> int:
    """Return where the payload of a PUBLISH begins, behind its topic, id and properties (MQTT 5, section 3.3).

    Raises MalformedPacket when it would begin beyond the packet.
    """
    at = 2 + int.from_bytes(packet[:2], "big") + (2 if qos else 0)
    length = 0
    for place, byte in enumerate(packet[at : at + 4]):
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            begin = at + place + 1 + length
            if begin <= len(packet):
                return begin
            break
    raise MalformedPacket("a message reaches beyond its packet")


def plain(sock: Any) -> socket.socket:
    """Return the socket inside paho's WebSocket; any other as it is."""
    inner: socket.socket = getattr(sock, "_socket", sock)
    return inner


def hang_up(sock: Any) -> None:
    """End a connection from another thread than its own, without a word; one that is gone is left alone.

    Below TLS: its own shutdown would have what had arrived encrypted read as if it were not.
    """
    try:
        socket.socket.shutdown(plain(sock), socket.SHUT_RDWR)
    except OSError:
        return

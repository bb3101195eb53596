"""What came on a watched topic, from bytes to what rules look at (pure)."""

from pydantic_core import from_json

from edge_agent.images.attachments import is_image
from edge_agent.protocol.messages import Inbound
from edge_agent.watch.template import Seen

TEXT_BYTES_MAX = 4 * 2**20
"""Of a watched message that is no image, such as JSON with one in base64: it is in memory more than once."""


def decode_seen(inbound: Inbound) -> Seen:
    """Return what came on a watched topic: an image, a text, a text that is JSON, or nothing that can be read."""
    payload = inbound.payload
    # A BMP has reserved bytes that are 0, a text that begins with BM has none.
    if is_image(payload[:16]) and (payload[:2] != b"BM" or b"\0" in payload[:16]):
        return Seen(inbound.topic, image=payload)
    if len(payload) > TEXT_BYTES_MAX:
        return Seen(inbound.topic, too_large=True)
    try:
        body = from_json(payload, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        body = None
    return Seen(inbound.topic, payload=payload, body=body)

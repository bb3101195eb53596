"""What one large packet costs the parent for a moment: an image uploaded at once, or watched, raw or in JSON.

The peak is the kernel's own (VmHWM), which it is asked to forget before each packet.
"""

import base64
import hashlib
import json
import os
import tempfile
from pathlib import Path

from edge_agent.watch.decode import TEXT_BYTES_MAX
from tests.bench.rig import arguments, median, report, rig, wait_idle
from tests.running import faulty, forget_peak, mosquitto_pub, peak_bytes

MB = 1e6
GOAL_MB = 20.0
RULES = """
[[watch]]
name = "raw"
topic = "cams/raw"
prompt = "What is shown?"

[[watch]]
name = "json"
topic = "cams/json"
image = "json.image"
prompt = "What is shown?"
"""


def main() -> None:
    options = arguments(__doc__, megabytes=8.0, repeat=5).parse_args()
    size = int(options.megabytes * 2**20) - 512  # topic and properties are in the packet too
    growth: dict[str, list[float]] = {"uploaded": [], "watched, raw": [], "watched, JSON": []}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "genai_config.json").write_text("{}")  # the engine reads nothing of it
        with rig(Path(name), extra=RULES) as made:
            made.agent.environ = faulty(FAULTS_BACKEND="metronome:load", METRONOME_IMAGES="1")
            for _ in range(options.repeat):
                for way, seen in growth.items():
                    made.agent.log.unlink(missing_ok=True)
                    parent = made.start()
                    made.agent.wait_said("link.up", 2)
                    wait_idle(parent)
                    forget_peak(parent.pid)
                    idle_bytes = parent.memory_info().rss
                    WAYS[way](made, size)
                    made.agent.wait_said("job.ended")
                    seen.append((peak_bytes(parent.pid) - idle_bytes) / MB)
                    made.agent.stop()
    figures = [median(f"the parent's growth: {way}", seen, "MB", at_most=GOAL_MB) for way, seen in growth.items()]
    report(
        "A large packet",
        figures,
        as_json=options.json,
        notes=[f"packets of {options.megabytes:g} MiB, or the largest that is read"],
    )


def image(size: int) -> bytes:
    """Return what looks like an image until it is decoded, and is like no other."""
    return b"\x89PNG\r\n\x1a\n" + os.urandom(size - 8)


def upload(made, size: int) -> None:
    content = image(size)
    sha256 = hashlib.sha256(content).hexdigest()
    asked = [{"type": "image_sha256", "sha256": sha256}, {"type": "text", "text": "What is shown?"}]
    body = {"job_id": sha256[:32], "messages": [{"role": "user", "content": asked}]}
    topic = f"edge/v1/agents/{made.agent.agent}/cmd"
    mosquitto_pub(made.broker, f"{topic}/job/bench", json.dumps(body))
    publish(made, f"{topic}/image/bench", content)


def watch_raw(made, size: int) -> None:
    publish(made, "cams/raw", image(size))


def watch_json(made, size: int) -> None:
    publish(
        made, "cams/json", b'{"image": "' + base64.b64encode(image(min(size, TEXT_BYTES_MAX) // 4 * 3 - 24)) + b'"}'
    )


def publish(made, topic: str, payload: bytes) -> None:
    file = made.folder / "payload"
    file.write_bytes(payload)
    mosquitto_pub(made.broker, topic, None, "-f", str(file))


WAYS = {"uploaded": upload, "watched, raw": watch_raw, "watched, JSON": watch_json}


if __name__ == "__main__":
    main()

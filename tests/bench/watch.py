"""A camera of twenty photos a second before an engine of one a second: what watching costs in memory and disk."""

import io
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from PIL import Image

from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.protocol.messages import Publication
from tests.bench.rig import Figure, arguments, report, rig

MIB = 2**20
PHOTOS = 40
ROOT = Path(__file__).parents[2]
RULE = """
[[watch]]
name = "camera"
topic = "cams/+"
prompt = "What is shown in this image?"
max_tokens = 1
answer_topic = "answers/{{ topic.2 }}"
"""


def main() -> None:
    options = arguments(__doc__, seconds=60.0, per_second=20.0).parse_args()
    photos = [photo(number) for number in range(PHOTOS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "genai_config.json").write_text("{}")  # the engine reads nothing of it
        with rig(folder, extra=RULE) as made:
            made.agent.environ = {
                "PYTHONPATH": f"{ROOT / 'tests/faults'}{os.pathsep}{ROOT}",
                "FAULTS_BACKEND": "metronome:load",
                "METRONOME_S": "1",
                "METRONOME_IMAGES": "1",
            }
            parent = made.start()
            made.agent.wait_said("link.up", 2)
            readings = list(flood(made, parent, photos, seconds=options.seconds, per_second=options.per_second))
            taken, ended = len(made.agent.said("job.accepted")), len(made.agent.said("job.ended"))
    first, second = readings[: len(readings) // 2], readings[len(readings) // 2 :]
    report(
        "A camera faster than the engine",
        [
            Figure("photos taken", taken / options.seconds, "1/s"),
            Figure("photos answered", ended / options.seconds, "1/s"),
            Figure("parent: resident, most of the first half", max(rss for rss, _ in first) / MIB, "MiB"),
            Figure("parent: resident, most of the second half", max(rss for rss, _ in second) / MIB, "MiB"),
            Figure("state on disk, most of the first half", max(disk for _, disk in first) / MIB, "MiB"),
            Figure("state on disk, most of the second half", max(disk for _, disk in second) / MIB, "MiB"),
        ],
        as_json=options.json,
        notes=[f"photos of {sum(map(len, photos)) / PHOTOS / 1000:.0f} kB, QoS 0 and 1 in turns"],
    )


def photo(number: int) -> bytes:
    """Return a photo that is like no other."""
    file = io.BytesIO()
    Image.effect_noise((800, 600), 30 + number).convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()


def flood(
    made: object, parent: psutil.Process, photos: list[bytes], *, seconds: float, per_second: float
) -> Iterator[tuple[int, int]]:
    """Publish for so long; yield what the agent takes of memory and disk, in bytes."""
    access = Access(made.broker.host, made.broker.port, client_id="camera", clean_start=True)
    link = Link(access, subscriptions=())
    link.start()
    link.wait_connected(10)
    begun_s = time.monotonic()
    for number in range(int(seconds * per_second)):
        link.publish(Publication("cams/yard", photos[number % len(photos)], qos=number % 2))
        yield parent.memory_info().rss, size_bytes(made.agent.state_dir)
        time.sleep(max(0.0, begun_s + (number + 1) / per_second - time.monotonic()))
    link.stop()


def size_bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # photos come and go
            continue
    return total


if __name__ == "__main__":
    main()

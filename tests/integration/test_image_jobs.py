"""Images through the whole daemon: sent with jobs or apart, hostile ones, decoders killed, restarts, small packets."""

import base64
import hashlib
import json
import os
import signal
from contextlib import contextmanager

import images
import psutil
import pytest
from PIL import Image, ImageDraw
from running import AgentProcess, Listener, forget_peak, mosquitto_pub, peak_bytes, requester, wait_for

from edge_agent.base.errors import Code
from edge_agent.client.handle import JobRejectedError
from edge_agent.mqtt.private_broker import PrivateBroker

pytestmark = [pytest.mark.broker, pytest.mark.engine]

DECODER = "edge_agent.images.decoder_child"


@pytest.fixture(scope="session")
def demo_vision(tmp_path_factory):
    """The trained model, which knows shapes and colours."""
    from edge_agent.synth import build_demo

    return build_demo(tmp_path_factory.mktemp("models") / "demo-vision", vision=True)


@contextmanager
def daemon(folder, broker, model, *, text_model=None, **settings):
    models = [{"name": "sees", "path": str(model), "context_tokens": 4096}]
    if text_model is not None:
        models.insert(0, {"name": "reads", "path": str(text_model), "context_tokens": 1024})
    with AgentProcess(folder=folder / "agent", broker=broker, models=models, **settings) as agent:
        agent.wait_said("engine.ready", len(models))
        yield agent


def engine_pid(agent, which=-1):
    return agent.said("engine.ready")[which]["pid"]


def decoders(agent):
    return [child.pid for child in agent.engines(DECODER)]


def drawn(shape, colour, size=(336, 336)):
    """A shape in the middle of a white image."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    box = (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    else:
        draw.rectangle(box, fill=colour)
    return image


def part(content, kind="application/octet-stream", **fields):
    url = f"data:{kind};base64," + base64.b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": url} | fields}


def by_hash(content):
    return {"type": "image_sha256", "sha256": hashlib.sha256(content).hexdigest()}


def about(*parts, text="What is shown in this image?", **fields):
    fields = {"max_tokens": 24} | fields
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]} | fields


def spooled(agent):
    """The files there are; folders may go while we look."""
    walked = os.walk(agent.state_dir / "images")
    return [f"{folder}/{name}" for folder, _, names in walked for name in names]


@pytest.mark.parametrize("sees", ["demo_vision", "demo_openvino_vision"])
def test_an_image_is_answered_told_what_it_cost_and_gone_afterwards(broker, tmp_path, sees, demo_model, request):
    """`auto` finds the model that sees, and the one that reads; the latter says who would see."""
    with (
        daemon(tmp_path, broker, request.getfixturevalue(sees), text_model=demo_model) as agent,
        requester(broker) as client,
    ):
        red = images.encoded(drawn("circle", "red"))
        wide = images.encoded(drawn("square", "blue", (2000, 1000)), "JPEG")
        result = client.submit("edge-01", **about(part(red))).result(60)
        assert (result.state, result.model) == ("succeeded", "sees")
        assert "red circle" in result.text
        assert [each.model_dump() for each in result.images] == [
            {
                "width": 336,
                "height": 336,
                "used_width": 336,
                "used_height": 336,
                "scaled": False,
                "tiles": 1,
                "tokens": 313,
            }
        ]
        text_tokens = result.usage.prompt_tokens - 313
        two = client.submit("edge-01", **about(part(red), part(wide, detail="low"))).result(60)
        assert [(each.used_width, each.used_height, each.scaled) for each in two.images] == [
            (336, 336, False),
            (336, 168, True),
        ]
        assert two.usage.prompt_tokens - sum(each.tokens for each in two.images) == pytest.approx(text_tokens, abs=8)
        plain = client.submit("edge-01", prompt="Who are you?", max_tokens=8).result(60)
        assert (plain.model, plain.images) == ("reads", None)
        with pytest.raises(Exception, match="reads is a text model and takes no images; this agent's sees would"):
            client.submit("edge-01", **about(part(red), model="reads")).result(60)
        wait_for(lambda: not spooled(agent), "the spool to be empty")


def ended(handle):
    """Return how a job ended, and the error if it has one."""
    try:
        result = handle.result(0)
    except JobRejectedError as refused:
        return "rejected", refused
    return result.state, result.error


MAY_BE_SHOWN = images.odd() | images.cut()
HOSTILE = {"jpeg-500-scans": images.jpeg_of_scans(500)} | images.bad() | MAY_BE_SHOWN
WRONG_BUT_SHOWN = {
    "says PNG, is JPEG": ("image/png", images.encoded(drawn("circle", "red"), "JPEG")),
    "says JPEG, is PNG": ("image/jpeg", images.encoded(drawn("circle", "red"))),
    "says HTML, is PNG": ("text/html", images.encoded(drawn("circle", "red"))),
}
WRONG_TYPE = {
    "says JPEG, is empty": ("image/jpeg", b""),
    "says JPEG, is text": ("image/jpeg", b"What is shown in this image?"),
    "says PNG, is SVG": ("image/png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "says PNG, is text after a PNG's head": ("image/png", b"\x89PNG\r\n\x1a\n" + b"text " * 99),
    "says HTML, is HTML": ("text/html", b"<!doctype html><title>red circle</title>"),
} | WRONG_BUT_SHOWN
"""Data URLs whose type lies: what they hold counts, what they say is not looked at."""


def test_nothing_hostile_harms_the_daemon_or_other_jobs(broker, tmp_path, demo_vision):
    """Each is answered, or `bad_image` with a sentence; the engine lives, the parent stays small, others go on."""
    with daemon(tmp_path, broker, demo_vision) as agent, requester(broker) as client:
        parent = psutil.Process(agent.pid)
        red = images.encoded(drawn("circle", "red"))
        assert client.submit("edge-01", **about(part(red))).result(60).state == "succeeded"
        idle_bytes, engine = parent.memory_info().rss, engine_pid(agent)
        handles = {
            name: client.submit("edge-01", images=[content], **about(priority=9, max_tokens=2))
            for name, content in (images.good() | HOSTILE).items()
        }
        for name, (kind, content) in WRONG_TYPE.items():
            handles[name] = client.submit("edge-01", **about(part(content, kind), priority=9, max_tokens=2))
        answered = images.good() | WRONG_BUT_SHOWN
        other = client.submit("edge-01", prompt="Who are you?", max_tokens=4, priority=0)
        peak_bytes = 0
        for name, handle in handles.items():
            wait_for(lambda handle=handle: handle.done, f"{name} to end", timeout_s=30)
            peak_bytes = max(peak_bytes, parent.memory_info().rss)
            state, error = ended(handle)
            if state == "succeeded":
                assert name in answered | MAY_BE_SHOWN
            else:
                assert name not in answered
                assert (error.code, error.message[:8]) == (Code.BAD_IMAGE, "messages"), (name, error)
        assert other.result(30).state == "succeeded"
        assert peak_bytes - idle_bytes < 20 * 2**20
        assert engine_pid(agent) == engine
        assert len(agent.said("engine.ready")) == 1
        wait_for(lambda: not spooled(agent), "the spool to be empty")


def test_a_photo_of_ten_megabytes_comes_through_small_packets(tmp_path, demo_vision):
    """In parts of what the broker takes, asked for by `waiting`; the parent does not grow by it."""
    photo = images.encoded(images.noise(4), "PNG", compress_level=1)
    photo += bytes(max(0, 10_000_000 - len(photo)))
    with (
        PrivateBroker(folder=tmp_path / "broker", max_packet_size=1_000_000) as broker,
        daemon(tmp_path, broker, demo_vision) as agent,
        requester(broker) as client,
    ):
        parent = psutil.Process(agent.pid)
        idle_bytes = parent.memory_info().rss
        handle = client.submit("edge-01", images=[photo], **about(max_tokens=2))
        states = [update.state for update in handle.updates(60) if hasattr(update, "state_seq")]
        assert states[:2] == ["waiting", "queued"]
        result = handle.result(60)
        assert (result.state, result.images[0].scaled) == ("succeeded", True)
        assert parent.memory_info().rss - idle_bytes < 20 * 2**20


CAMERA = """
[[watch]]
name = "camera"
topic = "cams/yard"
image = "json.image"
prompt = "What is shown?"
"""


def test_the_largest_packet_lifts_the_parent_by_less_than_20_mb(broker, tmp_path, demo_vision):
    """For a moment, by the kernel's own count: an image uploaded at once, and one watched, in JSON."""
    photo = images.encoded(drawn("circle", "red")) + bytes(8 * 2**20 - 10_000)
    watched = json.dumps({"image": base64.b64encode(photo[: 3 * 2**20 - 100]).decode()})
    topic = "edge/v1/agents/edge-01/cmd"
    file = tmp_path / "payload"
    with daemon(tmp_path, broker, demo_vision, extra=CAMERA) as agent:
        agent.wait_said("link.up", 2)
        for number, (where, payload) in enumerate(
            [(f"{topic}/image/me", photo), ("cams/yard", watched.encode())], start=1
        ):
            if where.startswith(topic):
                mosquitto_pub(
                    broker, f"{topic}/job/me", json.dumps(about(by_hash(photo), max_tokens=2) | {"job_id": "a"})
                )
                agent.wait_said("job.accepted")
            file.write_bytes(payload)
            idle_bytes = psutil.Process(agent.pid).memory_info().rss
            forget_peak(agent.pid)
            mosquitto_pub(broker, where, None, "-f", str(file))
            ended = agent.wait_said("job.ended", number)
            assert ended[-1]["state"] == "succeeded"
            assert peak_bytes(agent.pid) - idle_bytes < 20 * 2**20


def test_an_upload_goes_on_after_the_agent_was_killed(broker, tmp_path, demo_vision):
    """What was acknowledged of it is on the disk; the rest completes the job. With the clients everybody has."""
    red = images.encoded(drawn("circle", "red"))
    topic = "edge/v1/agents/edge-01/cmd"
    sha256 = hashlib.sha256(red).hexdigest()

    def upload(number, piece):
        file = tmp_path / "piece"
        file.write_bytes(piece)
        user = [
            word
            for name, value in (("sha256", sha256), ("part", str(number)), ("parts", "2"))
            for word in ("-D", "publish", "user-property", name, value)
        ]
        mosquitto_pub(broker, f"{topic}/image/me", None, "-f", str(file), *user)

    with daemon(tmp_path, broker, demo_vision) as agent, Listener(broker, "edge/v1/clients/me/inbox/#") as listener:
        body = about(by_hash(red)) | {"job_id": "job-1"}
        mosquitto_pub(broker, f"{topic}/job/me", json.dumps(body))
        assert listener.wait("status", state="waiting")[0]["missing"] == [sha256]
        upload(1, red[:500])
        wait_for(lambda: len(spooled(agent)) == 1, "the first part to be on the disk")
        mosquitto_pub(broker, f"{topic}/status/me", '{"job_id": "job-1"}')
        listener.wait("status", 2, state="waiting")
        agent.kill()
        agent.start()
        upload(2, red[500:])
        assert "red circle" in listener.wait("result", state="succeeded")[0]["text"]
        mosquitto_pub(broker, f"{topic}/image/me", "nobody asked for this")
        (refused,) = listener.wait("status", state="rejected")
        assert (refused["job_id"], refused["error"]["code"]) == ("unreadable", "unknown_job")


def test_an_upload_beyond_the_quota_ends_its_job_at_once_and_says_why(broker, tmp_path, demo_vision):
    """With the clients everybody has; sent again once there is room, it is answered."""
    first, second = (images.encoded(drawn("circle", colour)) for colour in ("red", "blue"))
    bound = max(len(first), len(second))
    topic = "edge/v1/agents/edge-01/cmd"
    file = tmp_path / "image"

    def ask(job_id, *contents):
        body = about(*map(by_hash, contents)) | {"job_id": job_id}
        mosquitto_pub(broker, f"{topic}/job/me", json.dumps(body))

    def upload(content):
        file.write_bytes(content)
        mosquitto_pub(broker, f"{topic}/image/me", None, "-f", str(file))

    extra = f"[images]\nimage_bytes = {bound}\nrequester_quota_bytes = {bound}\n"
    with (
        daemon(tmp_path, broker, demo_vision, extra=extra),
        Listener(broker, "edge/v1/clients/me/inbox/#") as listener,
    ):
        ask("has-one-of-two", first, b"never comes")
        upload(first)
        ask("too-much", second)
        upload(second)
        (result,) = listener.wait("result", job_id="too-much")
        assert (result["state"], result["error"]["code"]) == ("failed", "quota_exceeded")
        assert result["error"]["message"].startswith(
            f"messages: the images of your unfinished jobs may take {bound} bytes"
        )
        mosquitto_pub(broker, f"{topic}/cancel/me", '{"job_id": "has-one-of-two"}')
        listener.wait("result", job_id="has-one-of-two", state="canceled")
        ask("again", second)
        upload(second)
        assert "blue circle" in listener.wait("result", job_id="again", state="succeeded")[0]["text"]


def test_a_decoder_killed_in_the_middle_loses_no_job(broker, tmp_path, demo_vision):
    """Killed again and again: each job is answered or told, and the engine knows nothing of it."""
    noise = images.encoded(images.noise(6), "PNG", compress_level=1)
    with daemon(tmp_path, broker, demo_vision) as agent, requester(broker) as client:
        photos = [noise + bytes([number]) for number in range(5)]
        handles = [client.submit("edge-01", images=[photo], **about(max_tokens=2)) for photo in photos]
        for kill in range(6):
            found = wait_for(lambda: decoders(agent) or all(handle.done for handle in handles), "a decoder")
            if found is True:
                break
            os.kill(found[0], signal.SIGKILL)
            wait_for(lambda dead=found[0]: dead not in decoders(agent), f"kill {kill}")
        results = [handle.result(60) for handle in handles]
        assert all(result.state == "succeeded" or result.error.code is Code.BAD_IMAGE for result in results)
        assert len(agent.said("images.died")) >= 1
        assert len(agent.said("engine.ready")) == 1


def test_a_job_with_images_is_run_again_after_a_kill_of_the_agent(broker, tmp_path, demo_vision):
    """What was decoded is decoded anew; the images are still there."""
    red = images.encoded(drawn("circle", "red"))
    with daemon(tmp_path, broker, demo_vision) as agent, requester(broker) as client:
        handles = [client.submit("edge-01", **about(part(red), max_tokens=200)) for _ in range(6)]
        wait_for(lambda: any(handle.status and handle.status.state == "running" for handle in handles), "a job to run")
        agent.kill()
        agent.start()
        assert all("red circle" in handle.result(60).text for handle in handles)
        wait_for(lambda: not spooled(agent), "the spool to be empty")


def test_a_file_of_the_device_is_seen_below_an_allowed_folder_only(broker, tmp_path, demo_vision):
    camera = tmp_path / "camera"
    camera.mkdir()
    for folder in (camera, tmp_path):
        (folder / "a.png").write_bytes(images.encoded(drawn("square", "blue")))
    extra = f'[images]\nfolders = ["{camera}"]\n'
    with daemon(tmp_path, broker, demo_vision, extra=extra), requester(broker) as client:
        image = {"type": "image_url", "image_url": f"file://{camera}/a.png"}
        assert "blue square" in client.submit("edge-01", **about(image)).result(60).text
        outside = {"type": "image_url", "image_url": f"file://{tmp_path}/a.png"}
        with pytest.raises(Exception, match=r"^messages.0.content.1.image_url: names no file below"):
            client.submit("edge-01", **about(outside)).result(60)

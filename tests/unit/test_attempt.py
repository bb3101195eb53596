"""What an engine is asked for a job."""

from dataclasses import replace

from fakes import Time, accept

from edge_agent.jobs.job import ImageUse, Prepared
from edge_agent.running.attempt import Attempt

SHA256 = "ab" * 32


def test_an_image_has_a_name_that_only_its_owners_images_have(tmp_path):
    """An engine knows images it has seen by their names: by that of the bytes one client would find another's."""
    use = ImageUse(width=9, height=9, used_width=9, used_height=9, scaled=False, tiles=1, tokens=313)
    images = (Prepared(path="/images/1", sha256=SHA256, use=use),)
    content = [{"type": "image_sha256", "sha256": SHA256}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": content}]
    with Time().queue(tmp_path) as queue:
        job = accept(queue, prompt=None, messages=messages, here={SHA256: True})

    def name(owner):
        attempt = Attempt(
            replace(job, images=images),
            stream=None,
            begun_s=0.0,
            deadline_s=0.0,
            progress_s=0.0,
            load_ms=0.0,
            owner=owner,
        )
        return attempt.generation.turns[0].images[0].sha256

    assert name("line-3") == name("line-3") != name("line-4")
    assert name("") == SHA256

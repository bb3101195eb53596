"""Pulling a build from a hub that runs here: with every fault a hub and a network have, and kills at any moment."""

import hashlib
import os
import random
import resource
import subprocess
import sys
import threading
import time

import psutil
import pytest
from hub import COMMIT, Fault, Hub
from running import PATIENCE_S, wait_for

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.models import fetch as fetching
from edge_agent.models.build_store import BuildStore
from edge_agent.models.catalogue import RemoteFile, Variant
from edge_agent.models.fetch import fetch

WEIGHTS = random.Random(1).randbytes(300_000)
FILES = {
    "cpu/int4/model.onnx.data": WEIGHTS,
    "cpu/int4/genai_config.json": b'{"model": {}}',
    "cpu/int4/.gitattributes": b"* -text",
    "cpu/int4/deeper/model.onnx": b"another build",
    "gpu/model.onnx": b"another build",
    "README.md": b"# Model",
}
BUILD = {"model.onnx.data", "genai_config.json"}


def variant(**changed):
    known = {
        "name": "phi-test",
        "family": "phi",
        "backend": "onnx",
        "devices": ("cpu",),
        "repo": "maker/model",
        "revision": COMMIT,
        "folder": "cpu/int4",
        "precision": "int4",
        "weight_bytes": len(WEIGHTS),
        "source": "made up",
    }
    return Variant.model_validate(known | changed)


def known(content=WEIGHTS, name="model.onnx.data", **changed):
    file = {"name": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return RemoteFile.model_validate(file | changed)


@pytest.fixture
def hub():
    with Hub(FILES, large={"cpu/int4/model.onnx.data"}) as running:
        yield running


@pytest.fixture
def store(tmp_path):
    return BuildStore(tmp_path / "models", margin_bytes=0)


def pull(store, hub, wanted=None, *, progress=lambda _progress: None, stop=None, **changed):
    settings = {"url": hub.url, "backoff_s": 0.01, "timeout_s": 5} | changed
    return fetch(
        store, wanted or variant(), hub=fetching.Hub(**settings), progress=progress, stop=stop or threading.Event()
    )


def refused(store, hub, wanted=None, **changed):
    with pytest.raises(EdgeAgentError) as caught:
        pull(store, hub, wanted, **changed)
    assert store.installed() == ()
    assert caught.value.code is Code.MODEL_MISSING
    return caught.value.message


def test_a_pull_brings_the_variants_folder_and_nothing_else(store, hub):
    folder = pull(store, hub, variant(files=(known(),)))
    assert folder == store.folder / "phi-test"
    assert {path.name for path in folder.iterdir()} == BUILD | {".manifest.json"}
    assert (folder / "model.onnx.data").read_bytes() == WEIGHTS
    manifest = store.verify("phi-test")
    assert (manifest.repo, manifest.revision, manifest.origin) == ("maker/model", COMMIT, "pulled")
    assert {file.name: file.vouched for file in manifest.files} == {
        "model.onnx.data": "catalogue",
        "genai_config.json": "hub",
    }


def test_what_is_there_is_not_asked_for_again(store, hub):
    pull(store, hub)
    hub.requests.clear()
    assert pull(store, hub) == store.path("phi-test")
    assert hub.requests == []


def test_a_revision_that_moves_is_fetched_as_the_commit_it_stands_for(store, hub):
    pull(store, hub, variant(revision="main"))
    assert store.manifest("phi-test").revision == COMMIT
    assert all(f"/resolve/{COMMIT}/" in path for path, _headers in hub.downloads())


def test_a_build_of_another_commit_is_replaced(store, hub):
    pull(store, hub)
    hub.commit = "f" * 40
    hub.files["cpu/int4/genai_config.json"] = b'{"model": {"newer": 1}}'
    folder = pull(store, hub, variant(revision="f" * 40))
    assert (folder / "genai_config.json").read_bytes() == b'{"model": {"newer": 1}}'
    assert store.verify("phi-test").revision == "f" * 40
    assert list((store.folder / ".partial").glob("*~*")) == []


def test_a_build_that_lost_a_file_is_fetched_anew(store, hub):
    (pull(store, hub) / "genai_config.json").unlink()
    pull(store, hub)
    store.verify("phi-test")


def test_progress_goes_from_nothing_to_everything(store, hub):
    said = []
    pull(store, hub, progress=said.append)
    fetched = [each for each in said if each.phase == "fetching"]
    assert said[0].phase == "asking"
    assert fetched[-1].done_bytes == fetched[-1].total_bytes == sum(map(len, (WEIGHTS, b'{"model": {}}')))
    assert [each.done_bytes for each in fetched] == sorted(each.done_bytes for each in fetched)


# What a hub and a network do


def test_a_body_that_is_cut_off_is_continued_where_it_ended(store, hub):
    hub.faults += [Fault(cut_after=100_000), Fault(cut_after=100_000)]
    pull(store, hub)
    starts = [headers["Range"] for _path, headers in hub.downloads("model.onnx.data")]
    assert starts == ["bytes=0-", "bytes=100000-", "bytes=200000-"]
    assert hub.served_bytes == len(WEIGHTS) + len(FILES["cpu/int4/genai_config.json"])


def test_a_mirror_without_ranges_is_read_from_the_start_again(store, hub):
    hub.ranges = False
    hub.faults += [Fault(cut_after=100_000)]
    pull(store, hub)
    store.verify("phi-test")


def test_a_hub_that_is_always_cut_off_is_given_up_after_some_tries(store, hub):
    hub.always = Fault(cut_after=0)
    message = refused(store, hub, attempts=3)
    assert len(hub.downloads()) == 3
    assert "ended after 0 of 300000 bytes" in message or "peer closed connection" in message
    assert "what has arrived is kept: run it again" in message


def test_a_hub_that_sends_drops_is_given_up_too(store, hub):
    hub.always = Fault(cut_after=10)
    refused(store, hub, attempts=3)
    assert len(hub.downloads()) == 3


def test_a_hub_that_falls_silent_is_asked_again(store, hub):
    hub.faults += [Fault(cut_after=50_000, stalls=True)]
    pull(store, hub, timeout_s=0.3)
    assert hub.downloads("model.onnx.data")[1][1]["Range"] == "bytes=50000-"


def test_spoilt_bytes_are_noticed_and_fetched_again(store, hub):
    hub.faults += [Fault(spoilt=True)]
    pull(store, hub)
    store.verify("phi-test")


def test_spoilt_bytes_of_a_small_file_are_noticed_by_gits_own_id(store, hub):
    hub.faults += [Fault(), Fault(spoilt=True)]
    pull(store, hub)
    assert (store.path("phi-test") / "genai_config.json").read_bytes() == b'{"model": {}}'


@pytest.mark.parametrize("files", [(), (known(),)], ids=["announced", "catalogue"])
def test_bytes_that_stay_spoilt_are_refused(store, hub, files):
    hub.always = Fault(spoilt=True)
    assert "twice with another hash" in refused(store, hub, variant(files=files))
    assert len(hub.downloads()) == 2


def test_a_mirror_that_lists_no_hashes_is_held_to_the_catalogues(store, hub):
    hub.listed = [{"rfilename": path, "size": len(body)} for path, body in FILES.items()]
    hub.always = Fault(spoilt=True)
    assert "the catalogue knows" in refused(store, hub, variant(files=(known(),)))


def test_a_file_that_nobody_vouches_for_is_taken_and_marked(store, hub):
    hub.listed = [{"rfilename": path, "size": len(body)} for path, body in FILES.items()]
    pull(store, hub)
    assert store.manifest("phi-test").vouched == "nobody"


def test_more_than_was_announced_is_refused(store, hub):
    hub.always = Fault(extra=b"more")
    assert "sent more of model.onnx.data than it announced" in refused(store, hub)


def test_less_than_was_announced_is_refused(store, hub):
    entry = hub.entry("cpu/int4/model.onnx.data")
    entry["size"] += 10
    hub.listed = [entry]
    assert "less of model.onnx.data than it announced" in refused(store, hub)


def test_another_piece_than_was_asked_for_is_refused(store, hub):
    hub.faults += [Fault(cut_after=1000), Fault(shifted=True)]
    assert "sent another piece of model.onnx.data" in refused(store, hub)


def test_a_busy_hub_is_waited_for_as_long_as_it_asks(store, hub):
    hub.listing_faults += [Fault(429, {"Retry-After": "0"}), Fault(503)]
    hub.faults += [Fault(429, {"Retry-After": "0"}), Fault(500)]
    pull(store, hub, backoff_s=0)
    assert len(hub.downloads()) == len(BUILD) + 2


def test_a_hub_that_asks_for_a_long_pause_ends_the_pull_and_tells_when_to_come_back(store, hub):
    hub.faults += [Fault(429, {"Retry-After": "3600"})]
    with pytest.raises(EdgeAgentError, match="run it again in 3600 s") as caught:
        pull(store, hub)
    assert caught.value.retry_after_s == 3600


@pytest.mark.parametrize(
    ("status", "said"), [(401, "models.token_file"), (403, "accept the model's terms"), (404, "mend repo, revision")]
)
@pytest.mark.parametrize("queue", ["listing_faults", "faults"])
def test_a_refusal_is_said_with_what_to_do_and_not_repeated(store, hub, queue, status, said):
    getattr(hub, queue).append(Fault(status))
    assert said in refused(store, hub)
    assert len(hub.requests) == (1 if queue == "listing_faults" else 2)


def test_an_unknown_revision_is_said(store, hub):
    assert "mend repo, revision" in refused(store, hub, variant(revision="v9"))


def test_a_hub_that_gives_another_commit_than_asked_for_is_refused(store, hub):
    hub.commit = "f" * 40
    assert f"has no revision {COMMIT}" in refused(store, hub)
    assert hub.downloads() == []


@pytest.mark.parametrize("body", [b"<html>Welcome", b"[]", b'{"sha": 5}', b'{"siblings": [{}]}'])
def test_something_that_is_no_hub_is_recognised(store, hub, body):
    hub.listing_faults += [Fault(body=body)]
    assert "models.hub_url" in refused(store, hub)


def test_a_listing_without_end_is_given_up(store, hub):
    hub.listing_faults += [Fault(endless=True)]
    assert "models.hub_url" in refused(store, hub)


def test_a_hub_that_cannot_be_reached_is_named_with_what_to_do(store, hub):
    message = refused(store, hub, url="http://127.0.0.1:9", attempts=2)
    assert "http://127.0.0.1:9" in message
    assert "edge-agent models import" in message


@pytest.mark.parametrize(
    "path",
    [
        "cpu/int4/../../../etc/passwd",
        "cpu/int4//etc/passwd",
        "cpu/int4/..",
        "cpu/int4/a\\b",
        "cpu/int4/a\nb",
        "cpu/int4/" + "a" * 200,
        "cpu/int4/model.onnx.data",
    ],
)
def test_a_listing_with_a_name_no_build_has_is_refused(store, hub, path):
    hub.listed = [hub.entry("cpu/int4/model.onnx.data"), {"rfilename": path, "size": 1}]
    assert "lists a file" in refused(store, hub)
    assert hub.downloads() == []


def test_a_listing_of_too_many_or_too_large_files_is_refused(store, hub):
    hub.listed = [{"rfilename": f"cpu/int4/{number}", "size": 1} for number in range(1000)]
    assert "more than 256 files" in refused(store, hub)
    hub.listed = [{"rfilename": "cpu/int4/a", "size": 2**50}]
    assert "more bytes than any build" in refused(store, hub)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (known(name="tokenizer.json"), "lacks tokenizer.json"),
        (known(size_bytes=5, sha256=None), "300000 bytes and not 5"),
        (known(sha256="0" * 64), "another model.onnx.data than the catalogue knows"),
    ],
)
def test_a_repository_that_is_not_what_the_catalogue_says_is_refused_before_the_download(store, hub, file, said):
    assert said in refused(store, hub, variant(files=(file,)))
    assert hub.downloads() == []


# Tokens


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text("hf_secret\n")
    return file


def test_a_token_goes_to_the_hub_and_not_to_the_host_it_sends_us_to(store, hub, token_file):
    hub.token = "hf_secret"
    with Hub(FILES) as cdn:
        hub.cdn = cdn.url
        pull(store, hub, token_file=token_file)
    assert [headers.get("Authorization") for _path, headers in hub.requests] == ["Bearer hf_secret"] * 3
    assert [headers.get("Authorization") for _path, headers in cdn.requests] == [None, None]
    assert len(cdn.requests) == len(BUILD)


def test_no_token_is_sent_that_the_settings_do_not_name(store, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    pull(store, hub)
    assert not any("Authorization" in headers for _path, headers in hub.requests)


def test_a_token_stands_in_no_command_line_and_no_message(store, hub, token_file):
    seen = []

    def look(_progress):
        seen.extend(part for child in psutil.Process().children() for part in child.cmdline())

    hub.faults += [Fault(403)]
    with pytest.raises(EdgeAgentError) as caught:
        pull(store, hub, token_file=token_file, progress=look)
    assert "edge_agent.models.hub" in seen
    assert "hf_secret" not in caught.value.message + "".join(seen)


@pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff"])
def test_an_unusable_token_file_is_named(store, hub, tmp_path, content):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    assert "models.token_file" in refused(store, hub, token_file=file)
    assert hub.requests == []


def test_a_token_is_not_sent_in_the_clear(store, hub, token_file):
    assert "over https only" in refused(store, hub, url="http://mirror.invalid", token_file=token_file)


def test_nothing_else_than_the_build_is_asked_of_the_hub(store, hub, monkeypatch, tmp_path):
    """The hub's library would ask for a list of programs to compare ours with."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    pull(store, hub)
    assert len(hub.requests) == 1 + len(BUILD)
    assert not (tmp_path / "home").exists()


# Disk


def test_a_pull_that_does_not_fit_is_refused_before_it_begins(store, hub):
    full = BuildStore(store.folder, margin_bytes=2**60)
    with pytest.raises(EdgeAgentError, match="remove a build") as caught:
        pull(full, hub)
    assert caught.value.code is Code.STORAGE_FULL
    assert hub.downloads() == []


def test_a_pull_over_the_quota_is_refused_before_it_begins(store, hub):
    pull(store, hub, variant(name="other"))
    hub.requests.clear()
    small = BuildStore(store.folder, margin_bytes=0, quota_bytes=500_000)
    with pytest.raises(EdgeAgentError, match=r"models\.quota_bytes") as caught:
        pull(small, hub)
    assert caught.value.code is Code.STORAGE_FULL
    assert hub.downloads() == []


def test_a_disk_that_fills_up_is_said_and_the_rest_comes_later(store, hub):
    """A limit on the size of files, which the child inherits, stands for the full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(EdgeAgentError, match="make room or take another disk, then run it again") as caught:
            pull(store, hub)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code is Code.STORAGE_FULL
    pull(store, hub)
    assert hub.downloads("model.onnx.data")[-1][1]["Range"] == "bytes=200000-"


# Stops, kills, and several at once


@pytest.fixture
def slow_hub():
    """5 MB that take about 10 s."""
    files = {"cpu/int4/model.onnx.data": random.Random(2).randbytes(5 * 2**20), "cpu/int4/config.json": b"{}"}
    with Hub(files, large={"cpu/int4/model.onnx.data"}, bytes_per_s=500_000) as running:
        yield running


def test_a_stop_ends_the_pull_soon_and_the_next_one_goes_on(store, slow_hub):
    stop = threading.Event()

    def begun(progress):
        if progress.done_bytes:
            stop.set()

    with pytest.raises(EdgeAgentError, match="continued next time") as caught:
        pull(store, slow_hub, progress=begun, stop=stop)
    assert caught.value.code is Code.CANCELED
    assert store.installed() == ()
    arrived = store.partial_bytes()["phi-test"]
    assert arrived > 0
    slow_hub.bytes_per_s = None
    pull(store, slow_hub)
    assert int(slow_hub.downloads("model.onnx.data")[-1][1]["Range"].strip("bytes=-")) >= arrived


def test_a_pull_dies_with_its_parent(store, hub):
    """Killed outright, so that it cannot clean up, while the hub is silent and the child has nothing to say."""
    program = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from edge_agent.models.catalogue import Variant\n"
        "from edge_agent.models.fetch import Hub, fetch\n"
        "from edge_agent.models.build_store import BuildStore\n"
        "fetch(BuildStore(Path(sys.argv[1]), margin_bytes=0), Variant.model_validate_json(sys.argv[3]),\n"
        "      hub=Hub(sys.argv[2]), progress=print, stop=threading.Event())\n"
    )
    hub.faults += [Fault(cut_after=100_000, stalls=True)]
    arguments = [str(store.folder), hub.url, variant().model_dump_json()]
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.DEVNULL) as parent:
        wait_for(lambda: store.partial_bytes().get("phi-test") == 100_000, "the first bytes")
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child's end", timeout_s=10)
    pull(store, hub)
    store.verify("phi-test")


def test_two_pulls_of_one_build_fetch_it_once(store, slow_hub):
    slow_hub.bytes_per_s = 5_000_000
    said, folders = [], []

    def one():
        folders.append(pull(store, slow_hub, progress=said.append))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert folders == [store.path("phi-test")] * 3
    assert len(slow_hub.downloads("model.onnx.data")) == 1
    assert {each.pid for each in said if each.phase == "waiting"} - {0}
    store.verify("phi-test")


def test_a_build_that_is_being_pulled_is_not_removed(store, slow_hub):
    stop = threading.Event()

    def begun(progress):
        if progress.done_bytes and not stop.is_set():
            with pytest.raises(EdgeAgentError, match="is at work on phi-test"):
                store.remove("phi-test")
            stop.set()

    with pytest.raises(EdgeAgentError, match="was stopped"):
        pull(store, slow_hub, progress=begun, stop=stop)
    assert store.remove("phi-test") > 0
    assert store.partial_bytes() == {}


KILLS = int(os.environ.get("PULL_KILLS", "12"))
IN_FLIGHT_BYTES = 64 * 2**10
"""What a kill may cost: bytes that the hub has sent and the kernel not yet handed over."""


@pytest.mark.timeout(120 + 15 * KILLS)
def test_a_pull_killed_again_and_again_completes_without_starting_over(store):
    """At moments drawn by chance: while it asks, hashes what is there, fetches, or puts the build in its place."""
    chance = random.Random(4)
    files = {"cpu/int4/model.onnx.data": chance.randbytes(4 * 2**20), "cpu/int4/more.data": chance.randbytes(2**20)}
    size_bytes = sum(map(len, files.values()))
    kills, pulls = 0, 1
    with Hub(files, large=files, bytes_per_s=4_000_000) as hub:
        while kills < KILLS:
            if killed_pull(store, hub, after_bytes=chance.randrange(250_000), at_most_s=chance.choice((0.3, 5))):
                kills += 1
            else:
                store.verify("phi-test")
                store.remove("phi-test")
                pulls += 1
        pull(store, hub)
    assert hub.served_bytes <= pulls * size_bytes + KILLS * IN_FLIGHT_BYTES
    store.verify("phi-test")
    assert (store.path("phi-test") / "model.onnx.data").read_bytes() == files["cpu/int4/model.onnx.data"]


def killed_pull(store, hub, *, after_bytes, at_most_s):
    """Pull, and kill the child when the hub has sent so much, or a while after it spoke; return whether it was hit."""
    begun = threading.Event()

    def kill(end_bytes=hub.served_bytes + after_bytes):
        begun.wait(PATIENCE_S)
        pause, end_s = threading.Event(), time.monotonic() + at_most_s
        while hub.served_bytes < end_bytes and time.monotonic() < end_s:
            pause.wait(0.001)
        for child in psutil.Process().children():
            child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        pull(store, hub, progress=lambda _progress: begun.set())
    except EdgeAgentError as error:
        if "SIGKILL" not in error.message:
            raise
        return True
    finally:
        begun.set()
        killer.join(PATIENCE_S)
    return False


# Programs


def test_pythons_files_are_left_out(store, hub):
    """Published builds have one; the catalogue may name it."""
    hub.files["cpu/int4/configuration_phi3.py"] = b"import os"
    wanted = variant(files=(RemoteFile(name="configuration_phi3.py"),))
    assert {path.name for path in pull(store, hub, wanted).iterdir()} == BUILD | {".manifest.json"}


@pytest.mark.parametrize("name", ["evil.so", "evil.dll", "pytorch_model.bin"])
def test_a_build_with_a_program_is_refused(store, hub, name):
    hub.files[f"cpu/int4/{name}"] = b"x"
    assert f"lists a file whose name no build has ({name!r})" in refused(store, hub)


def test_a_program_by_another_name_is_refused(store, hub):
    hub.files["cpu/int4/merges.txt"] = b"\x7fELF" + bytes(99)
    assert "has a program called merges.txt" in refused(store, hub)

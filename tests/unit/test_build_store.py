"""The store of builds: what is in it is whole, and says so."""

import contextlib
import json
import os
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.retry_after import retry_after_s
from edge_agent.models import manifest as manifests
from edge_agent.models.build_store import BuildStore, refusal, sync
from edge_agent.models.catalogue import Variant
from edge_agent.models.fetch import Hub, is_current
from edge_agent.models.manifest import MANIFEST, Manifest, StoredFile
from edge_agent.settings.load import ModelsSection, Settings

FILES = {"genai_config.json": b"{}", "model.onnx.data": b"weights" * 1000}


@pytest.fixture
def store(tmp_path):
    return BuildStore(tmp_path / "models", margin_bytes=0)


def manifest_of(name="phi", files=None, **changed):
    stored = tuple(
        StoredFile(name=each, size_bytes=len(body), sha256=sha256(body).hexdigest(), vouched="hub")
        for each, body in (files or FILES).items()
    )
    known = {"name": name, "origin": "pulled", "at": datetime(2026, 1, 2, tzinfo=UTC), "files": stored}
    return Manifest(**(known | changed))


def put(store, name="phi", files=None):
    """Bring a build in as a pull does."""
    manifest = manifest_of(name, files)
    with store.locked(name):
        folder = store.partial(name, "test")
        for each, body in (files or FILES).items():
            (folder / each).write_bytes(body)
        return store.publish(folder, manifest)


def fault(call, *arguments):
    with pytest.raises(EdgeAgentError) as caught:
        call(*arguments)
    assert caught.value.code is Code.MODEL_MISSING
    return caught.value.message


def test_a_build_is_listed_once_it_is_published_and_not_before(store):
    with store.locked("phi"):
        (store.partial("phi", "test") / "model.onnx.data").write_bytes(b"1234")
    assert store.installed() == ()
    assert store.partial_bytes() == {"phi": 4}
    folder = put(store)
    (installed,) = store.installed()
    assert (installed.name, installed.path, installed.manifest) == ("phi", folder, manifest_of())
    assert store.partial_bytes() == {}
    assert store.path("phi") == folder
    assert store.size_bytes == sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("step", range(8))
def test_a_publication_cut_off_at_any_step_leaves_a_whole_build_or_none(store, monkeypatch, step):
    """A kill there is an exception that nobody handles; the steps are those that the disk sees."""
    put(store)
    steps = iter(range(100))

    def cut(call):
        def counted(*arguments):
            if next(steps) == step:
                raise KeyboardInterrupt
            return call(*arguments)

        return counted

    with monkeypatch.context() as patched:
        patched.setattr("edge_agent.models.build_store.sync", cut(sync))
        patched.setattr("pathlib.Path.rename", cut(Path.rename))
        with contextlib.suppress(KeyboardInterrupt):
            put(store, files={"genai_config.json": b"newer"})
    for installed in store.installed():
        assert installed.name == "phi"
        store.verify("phi")
    put(store, files={"genai_config.json": b"newer"})
    assert (store.path("phi") / "genai_config.json").read_bytes() == b"newer"
    assert store.partial_bytes() == {}


def test_nothing_is_published_that_is_not_on_the_disk(store, monkeypatch):
    order = []
    monkeypatch.setattr("edge_agent.models.build_store.sync", lambda path: order.append(path.name))
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: (order.append("rename"), rename(path, to)))
    put(store)
    assert order == [*FILES, MANIFEST, "phi~test", "rename", "models"]


def test_a_folder_without_a_manifest_is_none_of_ours(store):
    (store.folder / "notes").mkdir(parents=True)
    assert store.installed() == ()
    assert "edge-agent models pull notes" in fault(store.path, "notes")
    assert "not in" in fault(store.remove, "notes")
    assert (store.folder / "notes").is_dir()


@pytest.mark.parametrize("name", ["", ".", "..", "../phi", "/etc", "phi/..", ".partial"])
def test_a_name_leads_nowhere_else(store, name):
    put(store)
    for verb in (store.path, store.verify, store.remove):
        fault(verb, name)
    store.verify("phi")


def test_verify_names_every_file_that_differs(store):
    folder = put(store, files=FILES | {"tokenizer.json": b"{}"})
    store.verify("phi")
    (folder / "genai_config.json").write_bytes(b"[]")
    (folder / "tokenizer.json").unlink()
    (folder / "stranger.py").write_bytes(b"")
    message = fault(store.verify, "phi")
    assert "genai_config.json differs" in message
    assert "tokenizer.json: No such file" in message
    assert "stranger.py does not belong to it" in message
    assert "model.onnx.data" not in message
    assert "edge-agent models remove phi" in message


def test_a_link_is_no_file_of_a_build(store, tmp_path):
    folder = put(store)
    (tmp_path / "elsewhere").write_bytes(FILES["genai_config.json"])
    (folder / "genai_config.json").unlink()
    (folder / "genai_config.json").symlink_to(tmp_path / "elsewhere")
    assert "genai_config.json" in fault(store.verify, "phi")
    assert "missing or cut" in fault(store.path, "phi")
    (folder / "genai_config.json").unlink()
    (folder / "genai_config.json").symlink_to("ab")  # a link is as long as what it points to: like the file
    assert "missing or cut" in fault(store.path, "phi")


def test_a_build_that_lacks_bytes_is_not_loaded(store):
    os.truncate(put(store) / "model.onnx.data", 10)
    assert "model.onnx.data is missing or cut" in fault(store.path, "phi")


def test_a_renamed_folder_is_noticed(store):
    put(store).rename(store.folder / "other")
    assert "holds phi" in fault(store.path, "other")


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"\xff", b'{"format": 2}'])
def test_a_damaged_manifest_is_shown_and_the_build_not_loaded(store, body):
    (put(store) / MANIFEST).write_bytes(body)
    (installed,) = store.installed()
    assert installed.manifest is None
    assert "manifest is not valid" in fault(store.path, "phi")
    store.remove("phi")
    assert store.installed() == ()


@pytest.mark.parametrize(
    "files",
    [
        [],
        [{"name": "../a"}],
        [{"name": "a/b"}],
        [{"name": ".hidden"}],
        [{"name": "a\n"}],
        [{"name": "a"}, {"name": "A"}],
        [{"size_bytes": -1}],
        [{"size_bytes": 2**41}],
        [{"sha256": "0" * 63}],
        [{"name": "a", "size_bytes": 2**40}, {"name": "b", "size_bytes": 2**40}],
        [{"name": f"a{number}"} for number in range(257)],
    ],
)
def test_a_manifest_of_no_build_is_refused(files):
    whole = json.loads(manifest_of().encode())
    (first, *_rest) = whole["files"]
    whole["files"] = [first | each for each in files]
    with pytest.raises(EdgeAgentError, match="manifest is not valid") as caught:
        manifests.decode(json.dumps(whole).encode())
    assert caught.value.code is Code.BAD_REQUEST


def test_remove_frees_what_the_build_and_its_partial_take(store):
    put(store)
    with store.locked("phi"):
        (store.partial("phi", "test") / "model.onnx.data").write_bytes(b"1234")
    size_bytes = store.size_bytes
    assert store.remove("phi") == size_bytes
    assert store.size_bytes == 0
    assert "models list" in fault(store.remove, "phi")


def test_a_build_somebody_works_on_is_left_alone(store):
    put(store)
    with store.locked("phi"):
        assert f"process {os.getpid()} is at work on phi" in fault(store.remove, "phi")
        put(store, "other")
    store.verify("phi")


@pytest.mark.parametrize(
    ("missing", "free", "others", "quota", "said"),
    [
        (100, 200, 0, None, None),
        (100, 150, 0, None, "100 bytes are still to come, 100 bytes shall stay free and 150 bytes are"),
        (0, 100, 0, None, None),
        (100, 200, 600, 1000, None),
        (100, 200, 601, 1000, "models.quota_bytes allows 1000 bytes"),
    ],
)
def test_a_build_comes_in_when_disk_and_quota_have_room(missing, free, others, quota, said):
    refused = refusal(
        missing_bytes=missing,
        free_bytes=free,
        margin_bytes=100,
        size_bytes=400,
        others_bytes=others,
        quota_bytes=quota,
    )
    assert refused is None if said is None else said in refused


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(EdgeAgentError, match=r"set models\.dir"),
        BuildStore(tmp_path / "file" / "models").locked("phi"),
    ):
        pass


@pytest.mark.parametrize(
    ("wanted", "has", "current"),
    [
        ("0123456789abcdef", "0123456789abcdef0123", True),
        ("0123456789abcdef", "f" * 40, False),
        ("0123456789abcdef", None, True),
        ("main", "f" * 40, True),
    ],
)
def test_only_a_pinned_revision_makes_a_build_out_of_date(wanted, has, current, variant):
    assert is_current(manifest_of(revision=has), variant.model_copy(update={"revision": wanted})) is current


@pytest.fixture
def variant():
    return Variant(
        name="phi",
        family="phi",
        backend="onnx",
        devices=("cpu",),
        repo="maker/model",
        precision="int4",
        weight_bytes=1,
        source="made up",
    )


def test_the_store_lies_in_the_state_folder_unless_told_otherwise(tmp_path):
    assert BuildStore.of(Settings(agent={"state_dir": tmp_path})).folder == tmp_path / "models"
    elsewhere = Settings(models={"dir": tmp_path / "disk", "quota_bytes": 2**30})
    assert (BuildStore.of(elsewhere).folder, BuildStore.of(elsewhere).quota_bytes) == (tmp_path / "disk", 2**30)


@pytest.mark.parametrize(
    ("section", "environ", "url"),
    [
        ({}, {}, "https://huggingface.co"),
        ({}, {"HF_ENDPOINT": "https://mirror.example/"}, "https://mirror.example"),
        ({"hub_url": "https://other.example"}, {"HF_ENDPOINT": "https://mirror.example"}, "https://other.example"),
    ],
)
def test_the_settings_name_the_hub_and_else_the_environment(section, environ, url):
    assert Hub.of(ModelsSection(**section), environ).url == url


def test_messages_show_a_hub_without_its_password():
    assert Hub("https://me:secret@mirror.example:8443/hub").address == "https://mirror.example:8443/hub"


@pytest.mark.parametrize(
    ("header", "pause_s"),
    [
        (None, None),
        ("7", 7),
        ("soon", None),
        ("-5", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(header, pause_s):
    assert retry_after_s(header, now_s=10) == pause_s
    assert retry_after_s(header, now_s=4e9, sent="Thu, 01 Jan 1970 00:00:10 GMT") == pause_s

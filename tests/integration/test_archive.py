"""Builds that travel without a network: what was exported comes in whole, and nothing else comes in at all."""

import json
import os
import random
import resource
import subprocess
import sys
import tarfile
from hashlib import sha256

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.models.archive import _header_of, export, import_archive, import_folder
from edge_agent.models.build_store import BuildStore
from edge_agent.models.catalogue import RemoteFile, Variant
from edge_agent.models.manifest import MANIFEST

FILES = {"genai_config.json": b"{}", "model.onnx.data": random.Random(3).randbytes(3_000_001), "empty.txt": b""}
MANIFEST_LIMIT_BYTES = 256 * 2**10


@pytest.fixture
def store(tmp_path):
    return BuildStore(tmp_path / "models", margin_bytes=0)


@pytest.fixture
def folder(tmp_path):
    """A build somebody copied by hand."""
    folder = tmp_path / "phi"
    folder.mkdir()
    for name, body in FILES.items():
        (folder / name).write_bytes(body)
    return folder


@pytest.fixture
def archive(tmp_path, folder):
    """A build as another device exported it."""
    other = BuildStore(tmp_path / "other", margin_bytes=0)
    import_folder(other, folder, find=unknown)
    export(other, "phi", tmp_path / "phi.tar")
    return tmp_path / "phi.tar"


def unknown(_name):
    return None


def known(**hashes):
    """A catalogue that knows the build's files by these hashes."""
    variant = Variant(
        name="phi",
        family="phi",
        backend="onnx",
        devices=("cpu",),
        repo="maker/model",
        precision="int4",
        weight_bytes=1,
        source="made up",
        files=tuple(RemoteFile(name=name.replace("__", "."), sha256=each) for name, each in hashes.items()),
    )
    return lambda name: variant if name == "phi" else None


def refused(call, store, source, said, code=Code.BAD_REQUEST, **named):
    """It is refused with these words, and the store is as it was."""
    before = {path.relative_to(store.folder) for path in store.folder.rglob("*") if path.suffix != ".lock"}
    with pytest.raises(EdgeAgentError) as caught:
        call(store, source, **({"find": unknown} | named))
    assert said in caught.value.message
    assert caught.value.code is code
    after = {path.relative_to(store.folder) for path in store.folder.rglob("*") if path.suffix != ".lock"}
    assert {each.parts[0] for each in after - before} <= {".partial"}
    assert store.installed() == ()
    assert store.partial_bytes() == {}


def members(archive):
    with tarfile.open(archive) as opened:
        return [(member, opened.extractfile(member).read()) for member in opened]


def write(archive, *contents, end=b"\0" * 1024):
    """Write an archive of (header, body), headers as other tools may make them."""
    with archive.open("wb") as file:
        for header, body in contents:
            file.write(header.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512))
        file.write(end)


def header(name, size_bytes=0, **fields):
    made = tarfile.TarInfo(name)
    made.size = size_bytes
    for field, value in fields.items():
        setattr(made, field, value)
    return made


# What comes in


def test_an_exported_build_comes_in_whole_and_is_a_plain_tar_with_its_manifest_first(store, archive):
    assert [member.name for member, _body in members(archive)] == [MANIFEST, *sorted(FILES)]
    manifest = import_archive(store, archive, find=unknown)
    assert {path.name: path.read_bytes() for path in store.path("phi").iterdir() if path.name != MANIFEST} == FILES
    assert store.verify("phi") == manifest
    assert (manifest.origin, manifest.vouched) == ("imported", "archive")


def test_the_catalogue_vouches_for_what_it_knows(store, archive):
    hashes = {name.replace(".", "__"): sha256(body).hexdigest() for name, body in FILES.items()}
    assert import_archive(store, archive, find=known(**hashes)).vouched == "catalogue"


def test_a_build_can_get_another_name(store, archive):
    import_archive(store, archive, find=unknown, name="mine")
    assert store.verify("mine").name == "mine"


def test_an_import_replaces_the_build_of_its_name(store, archive, folder):
    (folder / "genai_config.json").write_bytes(b"[]")
    import_folder(store, folder, find=unknown)
    import_archive(store, archive, find=unknown)
    assert (store.path("phi") / "genai_config.json").read_bytes() == b"{}"


def test_a_refused_import_leaves_the_build_and_the_half_pull_of_its_name(store, archive, folder):
    import_folder(store, folder, find=unknown)
    with store.locked("phi"):
        (store.partial("phi", "commit") / "model.onnx.data").write_bytes(b"half")
    os.truncate(archive, 1_000_000)
    with pytest.raises(EdgeAgentError):
        import_archive(store, archive, find=unknown)
    store.verify("phi")
    assert store.partial_bytes() == {"phi": 4}


def test_a_copied_folder_comes_in_without_its_hidden_files(store, folder):
    (folder / ".DS_Store").write_bytes(b"x")
    manifest = import_folder(store, folder, find=unknown)
    assert {file.name for file in manifest.files} == set(FILES)
    assert manifest.vouched == "nobody"
    store.verify("phi")


def test_a_folder_copied_out_of_a_store_is_held_to_its_manifest(store, folder, tmp_path):
    other = BuildStore(tmp_path / "other", margin_bytes=0)
    import_folder(other, folder, find=unknown)
    source = other.path("phi")
    assert import_folder(store, source, find=unknown, name="copy").vouched == "archive"
    store.remove("copy")
    (source / "genai_config.json").write_bytes(b"[]")
    refused(import_folder, store, source, "genai_config.json has another size or hash")
    (source / "genai_config.json").unlink()
    (source / "openvino_model.xml").write_bytes(b"")
    refused(import_folder, store, source, "lacks genai_config.json")


# What is refused


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/evil", "phi\0evil", "evil", "", "."])
def test_a_name_outside_the_manifest_is_refused(store, archive, name):
    (first, *rest) = members(archive)
    write(archive, first, (header(name, 4), b"evil"), *rest)
    refused(import_archive, store, archive, "which its manifest does not name")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/evil", "..", ".ssh"])
def test_a_manifest_with_a_name_outside_the_folder_is_refused(store, archive, name):
    change(archive, lambda manifest: manifest["files"][0].update(name=name))
    refused(import_archive, store, archive, "the manifest is not valid")


def change(archive, edit):
    """Change the manifest of an archive."""
    ((first, body), *rest) = members(archive)
    manifest = json.loads(body)
    edit(manifest)
    body = json.dumps(manifest).encode()
    write(archive, (header(first.name, len(body)), body), *rest)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "..", "", "a b"])
def test_a_build_whose_name_is_no_name_is_refused(store, archive, folder, name):
    change(archive, lambda manifest: manifest.update(name=name))
    refused(import_archive, store, archive, "the manifest is not valid")
    if name:
        refused(import_folder, store, folder, "give it one with --name", name=name)


def test_a_wrong_hash_is_refused(store, archive):
    body = bytearray(archive.read_bytes())
    body[2_000_000] ^= 1
    archive.write_bytes(body)
    refused(import_archive, store, archive, "model.onnx.data has another size or hash than its manifest says")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_devices_and_folders_are_refused(store, archive, kind):
    (first, *rest) = members(archive)
    made = header("genai_config.json", type=kind, linkname="/etc/passwd", devmajor=1, devminor=5)
    write(archive, first, (made, b""), *rest[1:])
    refused(import_archive, store, archive, "is a link, a folder or a device")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_SPARSE])
def test_headers_that_say_more_than_name_and_size_are_refused_unread(store, archive, kind):
    """Other readers take them into memory, however large they say they are."""
    (first, *_rest) = members(archive)
    write(archive, first, (header("genai_config.json", 2**33, type=kind), b""))
    refused(import_archive, store, archive, "is a link, a folder or a device")


@pytest.mark.parametrize("kept", [0, 100, 512, 1000, 3000, 1_000_000])
def test_a_truncated_archive_is_refused(store, archive, kept):
    os.truncate(archive, kept)
    refused(import_archive, store, archive, "ends in the middle of")


def test_an_archive_that_lacks_a_file_is_refused(store, archive):
    (*rest, _last) = members(archive)
    write(archive, *rest)
    refused(import_archive, store, archive, "damaged")


def test_a_million_files_are_refused_at_the_first_that_is_not_named(store, archive):
    (first, *_rest) = members(archive)
    write(archive, first, *((header(f"a{number}"), b"") for number in range(1000)))
    with archive.open("r+b") as file:
        file.truncate(2**30)  # a hole stands for the rest
    refused(import_archive, store, archive, "'a0', which its manifest does not name")


@pytest.mark.parametrize("size_bytes", [1, 3, 2**40, -1])
def test_a_file_of_another_size_than_the_manifest_says_is_refused_unread(store, archive, size_bytes):
    (first, *rest) = members(archive)
    index = next(each for each, (member, _body) in enumerate(rest) if member.name == "genai_config.json")
    rest[index] = (header("genai_config.json", size_bytes), b"")
    write(archive, first, *rest)
    refused(import_archive, store, archive, f"genai_config.json has {size_bytes} bytes and not 2")


def test_a_file_that_comes_twice_is_refused(store, archive):
    (first, *rest) = members(archive)
    write(archive, first, rest[0], rest[0], *rest[1:])
    refused(import_archive, store, archive, "or names once")


def test_what_goes_on_after_the_last_file_is_refused(store, archive):
    write(archive, *members(archive), (header("more", 4), b"more"))
    refused(import_archive, store, archive, "goes on after the last file")


@pytest.mark.parametrize("size_bytes", [0, MANIFEST_LIMIT_BYTES + 1, 2**40])
def test_a_manifest_that_is_none_is_refused(store, archive, size_bytes):
    write(archive, (header(MANIFEST, size_bytes), b"{" * min(size_bytes, 300_000)))
    refused(import_archive, store, archive, "does not begin with a manifest")


@pytest.mark.parametrize("body", [b"PK\x03\x04" + b"x" * 2000, b"\0" * 10240, b"\x1f\x8b" * 1000])
def test_what_is_no_archive_is_said_to_be_none(store, archive, body):
    archive.write_bytes(body)
    refused(import_archive, store, archive, "no tar archive")


def test_an_archive_of_another_tool_is_refused_with_the_way_that_works(store, archive, folder):
    for shape in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(archive, "w", format=shape) as opened:
            opened.add(folder / "genai_config.json", "genai_config.json")
        refused(import_archive, store, archive, "unpack it, import the folder")


@pytest.mark.parametrize("call", [import_archive, import_folder])
def test_what_the_catalogue_knows_otherwise_is_refused(store, archive, folder, call):
    source = archive if call is import_archive else folder
    refused(call, store, source, "genai_config.json is not the file", find=known(genai_config__json="0" * 64))
    right = sha256(b"{}").hexdigest()
    refused(
        call, store, source, "tokenizer.json: named in", find=known(genai_config__json=right, tokenizer__json=right)
    )


def test_a_manifest_cannot_vouch_for_itself(store, archive):
    change(archive, lambda manifest: [file.update(vouched="catalogue") for file in manifest["files"]])
    assert import_archive(store, archive, find=unknown).vouched == "archive"


@pytest.mark.parametrize("make", ["symlink", "folder", "fifo", "name", "many"])
def test_a_folder_with_what_is_no_file_of_a_build_is_refused(store, folder, make):
    match make:
        case "symlink":
            (folder / "link").symlink_to("/etc/passwd")
        case "folder":
            (folder / "sub").mkdir()
        case "fifo":
            os.mkfifo(folder / "pipe")
        case "name":
            (folder / "a b").write_bytes(b"")
        case "many":
            for number in range(300):
                (folder / f"a{number}").write_bytes(b"")
    words = {"name": "no file of a build is called", "many": "more than 256 files"}
    refused(import_folder, store, folder, words.get(make, "is a link, a folder or a device"))


NAMED_SO = ("a.so", "liba.so.1", "A.DLL", "a.dylib", "a.exe", "run.sh", "a.pkl", "pytorch_model.bin", "a.pth", "a.pyc")
BEGINS_SO = {
    "elf": b"\x7fELF\x02\x01\x01" + bytes(99),
    "windows": b"MZ" + bytes(58) + (64).to_bytes(4, "little") + b"PE\0\0",
    "mac": b"\xcf\xfa\xed\xfe" + bytes(99),
    "torch": b"PK\x03\x04" + bytes(99),
    "older torch": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(99),
}


@pytest.mark.parametrize("name", NAMED_SO)
def test_what_is_called_as_a_program_is_refused(store, folder, name):
    (folder / name).write_bytes(b"")
    refused(import_folder, store, folder, f"{name} is a program or may hold one")


@pytest.mark.parametrize("way", ["folder", "archive"])
@pytest.mark.parametrize("kind", BEGINS_SO)
def test_what_is_a_program_is_refused_whatever_it_is_called(store, folder, tmp_path, monkeypatch, kind, way):
    """From a folder, and in an archive that another machine made."""
    (folder / "openvino_model.bin").write_bytes(BEGINS_SO[kind])
    source, call = folder, import_folder
    if way == "archive":
        other, source, call = BuildStore(tmp_path / "other", margin_bytes=0), tmp_path / "phi.tar", import_archive
        with monkeypatch.context() as trusting:
            trusting.setattr("edge_agent.models.archive.is_program", lambda _file: False)
            import_folder(other, folder, find=unknown)
        export(other, "phi", source)
    refused(call, store, source, "openvino_model.bin is a program")


def test_an_archive_with_a_program_is_refused_by_its_manifest(store, archive):
    change(archive, lambda manifest: manifest["files"][0].update(name="a.so"))
    refused(import_archive, store, archive, "a.so is a program")


def test_pythons_files_are_left_out(store, folder, archive, tmp_path, monkeypatch):
    """Published builds have one, and archives of version 0.1.0 do; the catalogue may name it."""
    (folder / "configuration_phi3.py").write_text("import os")
    wanted = known(configuration_phi3__py=None)
    other = BuildStore(tmp_path / "older", margin_bytes=0)
    with monkeypatch.context() as trusting:
        trusting.setattr("edge_agent.models.archive.is_source", lambda _name: False)
        import_folder(other, folder, find=unknown)
    export(other, "phi", tmp_path / "older.tar")
    for call, source in ((import_folder, folder), (import_archive, archive), (import_archive, tmp_path / "older.tar")):
        assert {file.name for file in call(store, source, find=wanted).files} == set(FILES)
        assert {path.name for path in store.path("phi").iterdir()} == {*FILES, MANIFEST}
        store.verify("phi")


def test_a_folder_that_holds_no_build_is_refused(store, folder):
    (folder / "genai_config.json").unlink()
    refused(import_folder, store, folder, "none of genai_config.json")


def test_an_import_that_does_not_fit_is_refused_before_a_byte_is_written(store, archive, folder):
    for call, source in ((import_archive, archive), (import_folder, folder)):
        refused(call, BuildStore(store.folder, margin_bytes=2**60), source, "shall stay free", Code.STORAGE_FULL)
        small = BuildStore(store.folder, margin_bytes=0, quota_bytes=2**20)
        refused(call, small, source, "models.quota_bytes", Code.STORAGE_FULL)


def test_a_disk_that_fills_up_leaves_nothing(store, archive, tmp_path):
    """A limit on the size of files stands for the full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        refused(import_archive, store, archive, "make room", Code.STORAGE_FULL)
        with pytest.raises(EdgeAgentError, match="make room") as caught:
            export(BuildStore(tmp_path / "other"), "phi", tmp_path / "again.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code is Code.STORAGE_FULL
    assert list(tmp_path.glob("again.tar*")) == []


def test_an_import_takes_little_memory_however_large_the_build(store, tmp_path):
    """Four times the memory it may take, in one file."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "genai_config.json").write_bytes(b"{}")
    with (folder / "model.onnx.data").open("wb") as file:
        file.truncate(96 * 2**20)
    import_folder(store, folder, find=unknown)
    export(store, "large", tmp_path / "large.tar")
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from edge_agent.models.archive import import_archive\n"
        "from edge_agent.models.build_store import BuildStore\n"
        "def most_kib():\n"
        "    return int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before_kib = most_kib()\n"
        "store = BuildStore(Path(sys.argv[1]), margin_bytes=0)\n"
        "import_archive(store, Path(sys.argv[2]), find=lambda name: None, name='b')\n"
        "print(most_kib() - before_kib)\n"
    )
    arguments = [str(store.folder), str(tmp_path / "large.tar")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) * 1024 < 24 * 2**20


# Export


def test_a_damaged_build_is_not_exported(store, folder, tmp_path):
    import_folder(store, folder, find=unknown)
    with (store.path("phi") / "model.onnx.data").open("r+b") as file:
        file.write(b"spoilt")
    with pytest.raises(EdgeAgentError, match="not exported"):
        export(store, "phi", tmp_path / "phi.tar")
    assert list(tmp_path.glob("phi.tar*")) == []


def test_an_export_overwrites_nothing(store, folder, tmp_path):
    import_folder(store, folder, find=unknown)
    (tmp_path / "phi.tar").write_bytes(b"mine")
    with pytest.raises(EdgeAgentError, match="name another file"):
        export(store, "phi", tmp_path / "phi.tar")
    with pytest.raises(EdgeAgentError, match="name another place"):
        export(store, "phi", tmp_path / "nowhere" / "phi.tar")
    assert (tmp_path / "phi.tar").read_bytes() == b"mine"


def test_a_size_over_8_gib_has_a_place_in_a_header(folder, store):
    made = _header_of("model.onnx.data", 2**35, import_folder(store, folder, find=unknown))
    assert len(made) == 512
    assert tarfile.TarInfo.frombuf(made, "utf-8", "strict").size == 2**35
